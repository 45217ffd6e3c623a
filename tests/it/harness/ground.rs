//! A block of loopback addresses for one test: `127.x.y.0/24`, where every instance has an address of its own and all
//! use the same ports, as hosts do.
//!
//! The sockets of the test's DNS server hold the block. A second test that draws the same one finds it held and draws
//! again, also in another process.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

/// The ports that every instance of a test uses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports {
    first: u16,
}

/// How many ports a test uses.
const PORTS: u16 = 10;

impl Ports {
    pub(crate) fn dns(self) -> u16 {
        self.first
    }
    /// The ingress, in plaintext.
    pub(crate) fn public(self) -> u16 {
        self.first + 1
    }
    /// The ingress, with TLS.
    pub(crate) fn secure(self) -> u16 {
        self.first + 2
    }
    /// Every app.
    pub(crate) fn app(self) -> u16 {
        self.first + 3
    }
    pub(crate) fn admin(self) -> u16 {
        self.first + 4
    }
    pub(crate) fn outbound(self) -> u16 {
        self.first + 5
    }
    pub(crate) fn inbound(self) -> u16 {
        self.first + 6
    }
    pub(crate) fn collector(self) -> u16 {
        self.first + 7
    }
    pub(crate) fn ca(self) -> u16 {
        self.first + 8
    }
    /// For whatever a test needs besides.
    pub(crate) fn spare(self) -> u16 {
        self.first + 9
    }
}

/// A block that is ours while this lives.
#[derive(Debug)]
pub(crate) struct Ground {
    second: u8,
    third: u8,
    pub(crate) ports: Ports,
}

/// The test itself and its DNS server.
pub(crate) const TEST: u8 = 1;
/// The gateway.
pub(crate) const INGRESS: u8 = 2;
/// The certificate authority.
pub(crate) const CA: u8 = 3;
/// Another gateway.
pub(crate) const SECOND_INGRESS: u8 = 4;
/// The first instance of the first service; each service has ten addresses.
pub(crate) const SERVICES: u8 = 10;

impl Ground {
    /// Finds a free block, and gives the sockets that hold it.
    pub(crate) fn claim() -> (Self, UdpSocket, TcpListener) {
        // Below the range from which the system takes the ports of clients.
        for first in (20_000..32_000).step_by(500) {
            for _ in 0..8 {
                let ground = Self {
                    second: fastrand::u8(16..=250),
                    third: fastrand::u8(..),
                    ports: Ports { first },
                };
                if let Ok((udp, tcp)) = ground.hold() {
                    return (ground, udp, tcp);
                }
            }
        }
        panic!("no block of loopback addresses is free");
    }

    fn hold(&self) -> io::Result<(UdpSocket, TcpListener)> {
        let at = |port| SocketAddr::new(self.host(TEST), port);
        for port in 1..PORTS {
            // Somebody may hold it on all addresses.
            TcpListener::bind(at(self.ports.first + port))?;
        }
        let udp = UdpSocket::bind(at(self.ports.dns()))?;
        let tcp = TcpListener::bind(at(self.ports.dns()))?;
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Ok((udp, tcp))
    }

    /// An address of the block.
    pub(crate) fn host(&self, number: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(127, self.second, self.third, number))
    }
}
