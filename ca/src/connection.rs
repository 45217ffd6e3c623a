//! A client's connection: a seat among a bounded number, given up when nothing is asked for.
//!
//! Certificates are asked for by everybody at the same time after a power cut, and the port is open to whoever is on
//! the network. So each address has a share of the seats, and a connection without a call in progress is closed after
//! a minute: whoever only sits there does not keep others out.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::telemetry;

/// How many connections there may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) connections: usize,
    pub(crate) per_address: usize,
    /// How long a client has for its TLS handshake.
    pub(crate) handshake: Duration,
    /// How long a connection stays without a call in progress.
    pub(crate) idle: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        // 1024 descriptors is the usual soft limit, and some are for files. Behind one address may stand a whole
        // network, so its share is a quarter.
        Self {
            connections: 900,
            per_address: 225,
            handshake: Duration::from_secs(5),
            idle: Duration::from_secs(60),
        }
    }
}

/// Who sits where.
#[derive(Debug)]
pub(crate) struct Seats {
    pub(crate) bounds: Bounds,
    /// How many connections each address has, and all of them. Held for a look and a sum.
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A connection's place, given back on drop.
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Arc<Seats>,
    address: IpAddr,
    /// Calls in progress, and since when there is none. Held for a look.
    calls: Mutex<(usize, Instant)>,
}

impl Seats {
    pub(crate) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self {
            bounds,
            taken: Mutex::default(),
        })
    }

    /// How many are taken.
    pub(crate) fn count(&self) -> usize {
        self.taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .all
    }

    /// A seat for `address`, or why there is none.
    pub(crate) fn take(
        self: &Arc<Self>,
        address: IpAddr,
        now: Instant,
    ) -> Result<Arc<Seat>, &'static str> {
        let address = share_of(address);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.all >= self.bounds.connections {
            return Err("all_seats_taken");
        }
        let of_address = taken.by_address.entry(address).or_default();
        if *of_address >= self.bounds.per_address {
            return Err("too_many_of_one_address");
        }
        *of_address += 1;
        taken.all += 1;
        telemetry::opened();
        Ok(Arc::new(Seat {
            seats: Arc::clone(self),
            address,
            calls: Mutex::new((0, now)),
        }))
    }
}

/// What counts as one address: in IPv6 a network of 64 bits belongs to one party.
fn share_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) & !u128::from(u64::MAX)).into()),
        address => address,
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self
            .seats
            .taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        if let Some(of_address) = taken.by_address.get_mut(&self.address) {
            *of_address -= 1;
            // So that the table is never larger than the number of connections.
            if *of_address == 0 {
                taken.by_address.remove(&self.address);
            }
        }
        telemetry::closed();
    }
}

impl Seat {
    /// Where it stands.
    pub(crate) fn seats(&self) -> &Seats {
        &self.seats
    }

    /// A call begins; it ends with the drop of what this returns.
    pub(crate) fn call(self: &Arc<Self>) -> Call {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).0 += 1;
        Call(Arc::clone(self))
    }

    /// When this connection will have been idle for too long; `None` while a call is in progress.
    fn idle_until(&self) -> Option<Instant> {
        match *self.calls.lock().unwrap_or_else(PoisonError::into_inner) {
            (0, since) => Some(since + self.seats.bounds.idle),
            _ => None,
        }
    }
}

/// A call in progress.
#[derive(Debug)]
pub(crate) struct Call(Arc<Seat>);

impl Drop for Call {
    fn drop(&mut self) {
        let mut calls = self.0.calls.lock().unwrap_or_else(PoisonError::into_inner);
        *calls = (calls.0 - 1, Instant::now());
    }
}

/// What a call knows about its connection.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) seat: Arc<Seat>,
    /// Leaf first; empty when the client showed none.
    pub(crate) certificates: Arc<[CertificateDer<'static>]>,
}

/// A TLS connection on its seat. Reading fails when it was idle for too long, which ends the connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    idle: Pin<Box<Sleep>>,
}

impl Connection {
    pub(crate) fn new(stream: TlsStream<TcpStream>, seat: Arc<Seat>) -> Self {
        let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let certificates = certificates
            .iter()
            .map(|certificate| certificate.clone().into_owned())
            .collect();
        let first = Instant::now() + seat.seats.bounds.idle;
        Self {
            stream,
            peer: Peer { seat, certificates },
            idle: Box::pin(sleep_until(first)),
        }
    }

    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        while self.idle.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            // During a call there is nothing to measure; look again later.
            let until = self
                .peer
                .seat
                .idle_until()
                .unwrap_or(now + self.peer.seat.seats.bounds.idle);
            if until <= now {
                return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "idle for too long"));
            }
            self.idle.as_mut().reset(until);
        }
        Poll::Pending
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(error) = self.poll_idle(cx) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn seats(connections: usize, per_address: usize) -> Arc<Seats> {
        Seats::new(Bounds {
            connections,
            per_address,
            ..Bounds::default()
        })
    }

    #[test]
    fn one_address_has_its_share_and_no_more() {
        let seats = seats(5, 2);
        let now = Instant::now();
        let take = |text: &str| seats.take(text.parse().unwrap(), now);
        let first = take("10.0.0.1").unwrap();
        let _second = take("::ffff:10.0.0.1").unwrap();
        assert_eq!(take("10.0.0.1").unwrap_err(), "too_many_of_one_address");
        let _third = take("fd00::1").unwrap();
        let _fourth = take("fd00::2").unwrap();
        assert_eq!(take("fd00::3").unwrap_err(), "too_many_of_one_address");
        let _fifth = take("fd00:0:0:1::1").unwrap();
        assert_eq!(take("10.0.0.9").unwrap_err(), "all_seats_taken");
        drop(first);
        take("10.0.0.1").unwrap();
    }

    #[test]
    fn the_table_of_addresses_does_not_grow() {
        let seats = seats(5, 2);
        for number in 0..1000_u32 {
            seats
                .take(IpAddr::from(number.to_be_bytes()), Instant::now())
                .unwrap();
        }
        assert_eq!(seats.taken.lock().unwrap().by_address.len(), 0);
    }

    #[test]
    fn a_connection_is_idle_from_the_end_of_its_last_call() {
        let start = Instant::now();
        let minute = Duration::from_secs(60);
        let seat = seats(1, 1)
            .take("10.0.0.1".parse().unwrap(), start)
            .unwrap();
        assert_eq!(seat.idle_until(), Some(start + minute));
        let (one, two) = (seat.call(), seat.call());
        drop(one);
        assert_eq!(seat.idle_until(), None);
        let before = Instant::now();
        drop(two);
        let until = seat.idle_until().unwrap();
        assert!(before + minute <= until && until <= Instant::now() + minute);
    }
}
