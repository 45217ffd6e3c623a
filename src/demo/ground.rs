//! Where the demo stands: one block `127.a.b.0/24` and one port for each purpose, found by trying.
//!
//! Each instance gets an address of its own in the block and all instances use the same ports, as hosts do. The
//! socket of the DNS server claims the block: while it is held, a second demo finds the block taken and moves on.
//! Nothing outlives the process.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

/// How many blocks are tried with the usual DNS port before another port is.
const BLOCKS_PER_PORT: usize = 8;
/// How many ports are tried for one purpose.
const PORTS_PER_PURPOSE: u16 = 20;
/// How far the next port to try is: an unusual distance, so that neighbours in our own table are not hit.
const PORT_STEP: u16 = 1_017;

/// The port of each purpose: the usual one, or one nearby when something on this machine holds the usual one on
/// all addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ports {
    /// The demo's DNS server. Not 5353: desktops have a multicast DNS responder there, on all addresses.
    pub(super) dns: u16,
    /// The ingress, for everybody.
    pub(super) public: u16,
    /// The app of every instance, behind its sidecar.
    pub(super) app: u16,
    /// Where the demo tells an app to misbehave.
    pub(super) control: u16,
    /// Every process' admin pages.
    pub(super) admin: u16,
    /// Where an app reaches its sidecar.
    pub(super) outbound: u16,
    /// Where a sidecar takes mutual TLS.
    pub(super) inbound: u16,
    /// Where sidecars report to.
    pub(super) collector: u16,
    /// The certificate authority.
    pub(super) ca: u16,
}

impl Ports {
    /// The documented ports.
    pub(super) const USUAL: Ports = Ports {
        dns: 15_053,
        public: 8_080,
        app: 9_080,
        control: 9_081,
        admin: 15_000,
        outbound: 15_001,
        inbound: 15_008,
        collector: 15_010,
        ca: 15_012,
    };

    fn each_but_dns(&mut self) -> [&mut u16; 8] {
        [
            &mut self.public,
            &mut self.app,
            &mut self.control,
            &mut self.admin,
            &mut self.outbound,
            &mut self.inbound,
            &mut self.collector,
            &mut self.ca,
        ]
    }
}

/// A block of addresses of our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    second: u8,
    third: u8,
}

impl Block {
    /// A block away from the low ones that people and distributions use by hand.
    fn draw(random: &mut fastrand::Rng) -> Self {
        Self {
            second: random.u8(16..=250),
            third: random.u8(..),
        }
    }

    /// One address of the block.
    pub(super) fn host(self, number: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(127, self.second, self.third, number))
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "127.{}.{}.0/24", self.second, self.third)
    }
}

/// The ground, and the sockets that hold it.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) block: Block,
    pub(super) ports: Ports,
    /// Bound and non-blocking, for the DNS server.
    pub(super) dns: (UdpSocket, TcpListener),
}

/// The demo itself and its DNS server.
pub(super) const DEMO: u8 = 1;
/// The gateway and the collector.
pub(super) const INGRESS: u8 = 2;
/// The certificate authority.
pub(super) const CA: u8 = 3;

impl Ground {
    /// Finds a free block and free ports.
    pub(super) fn claim(random: &mut fastrand::Rng) -> io::Result<Self> {
        Self::claim_from(random, Ports::USUAL)
    }

    fn claim_from(random: &mut fastrand::Rng, usual: Ports) -> io::Result<Self> {
        let mut ports = usual;
        let (block, dns) = claim_block(random, &mut ports)?;
        for port in ports.each_but_dns() {
            *port = free_port(block, *port)?;
        }
        Ok(Self { block, ports, dns })
    }
}

fn claim_block(
    random: &mut fastrand::Rng,
    ports: &mut Ports,
) -> io::Result<(Block, (UdpSocket, TcpListener))> {
    let mut last = None;
    for port in candidates(ports.dns) {
        for _ in 0..BLOCKS_PER_PORT {
            let block = Block::draw(random);
            match bind_dns(SocketAddr::new(block.host(DEMO), port)) {
                Ok(sockets) => {
                    ports.dns = port;
                    return Ok((block, sockets));
                }
                Err(error) => last = Some(error),
            }
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}

fn bind_dns(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let udp = UdpSocket::bind(address)?;
    let tcp = TcpListener::bind(address)?;
    udp.set_nonblocking(true)?;
    tcp.set_nonblocking(true)?;
    Ok((udp, tcp))
}

/// The first port that can be bound. The probe is closed at once: the processes bind it for themselves, and in a
/// block that is ours nobody else does.
fn free_port(block: Block, usual: u16) -> io::Result<u16> {
    let mut last = None;
    for port in candidates(usual) {
        match TcpListener::bind((block.host(DEMO), port)) {
            Ok(_probe) => return Ok(port),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}

fn candidates(usual: u16) -> impl Iterator<Item = u16> {
    (0..PORTS_PER_PURPOSE)
        .map(move |turn| usual.saturating_add(turn.saturating_mul(PORT_STEP)))
        .filter(|port| *port < 32_000)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn two_demos_stand_on_different_ground() {
        // The same dice: the second draws the block of the first, finds it held, and draws on.
        let first = Ground::claim(&mut fastrand::Rng::with_seed(7)).unwrap();
        let second = Ground::claim(&mut fastrand::Rng::with_seed(7)).unwrap();
        assert_ne!(first.block, second.block);
        assert_eq!(first.ports.dns, second.ports.dns);
    }

    #[test]
    fn a_port_that_somebody_holds_on_all_addresses_is_left_alone() {
        let (taken, port) = (20_000..25_000)
            .find_map(|port| Some((TcpListener::bind(("0.0.0.0", port)).ok()?, port)))
            .unwrap();
        let usual = Ports {
            public: port,
            ..Ports::USUAL
        };
        let ground = Ground::claim_from(&mut fastrand::Rng::with_seed(8), usual).unwrap();
        assert_ne!(ground.ports.public, port);
        assert_eq!((ground.ports.public - port) % PORT_STEP, 0);
        drop(taken);
    }

    #[test]
    fn the_ground_is_free_again_when_dropped() {
        let block = Ground::claim(&mut fastrand::Rng::with_seed(9))
            .unwrap()
            .block;
        let again = Ground::claim(&mut fastrand::Rng::with_seed(9))
            .unwrap()
            .block;
        assert_eq!(block, again);
    }
}
