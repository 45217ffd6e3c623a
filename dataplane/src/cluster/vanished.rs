//! Peers that vanish without a word: their machine, or the way there. What is silent then looks like what has nothing to
//! say, for ever, and a WebSocket, a stream or a tunnel is silent for hours.
//!
//! So the kernel asks where nothing comes (keepalive): after [`ASK`] of silence, every [`AGAIN`], and [`TIMES`] without an
//! answer are the end. That is half a minute, costs this process nothing and a connection that idles a packet each way in
//! fifteen seconds. A listening socket hands it down to all that it accepts.
//!
//! It does not ask while something that was sent is unacknowledged; then repetition has to fail, which takes the kernel a
//! quarter of an hour (`tcp_retries2`). `TCP_USER_TIMEOUT` shortens that, but it also ends connections whose peer
//! acknowledges each probe and has closed its window: to the kernel both have not taken what there is for them (Linux,
//! `tcp_probe_timer`). A client or an app may read as slowly as it likes, so it is for HTTP/2 between processes of the
//! mesh, who read whatever becomes of their streams, and towards endpoints that speak it. Where it is set, it also
//! decides in place of [`TIMES`] when the asking has been in vain (`tcp_keepalive_timer`): it is never above their sum.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Silence until the first question.
const ASK: Duration = Duration::from_secs(15);
/// From one question to the next.
const AGAIN: Duration = Duration::from_secs(5);
/// Questions that may go without an answer.
const TIMES: u32 = 3;

/// How long an endpoint may leave what we sent without an acknowledgement.
pub(crate) const OF_ENDPOINT: Duration = Duration::from_secs(10);
/// The same of a caller: nobody else can take its place, so it has more time.
pub(crate) const OF_CALLER: Duration = Duration::from_secs(30);

/// Has the kernel ask whether the peer of a connection is still there. On a listening socket: of all that it accepts.
pub(crate) fn ask(socket: &SockRef<'_>) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(ASK)
        .with_interval(AGAIN)
        .with_retries(TIMES);
    socket.set_tcp_keepalive(&keepalive)
}

/// Ends the connection when its peer does not take for so long what there is for it.
pub(crate) fn must_take(stream: &TcpStream, within: Duration) {
    // Where that cannot be had, the system's own patience counts.
    let _: io::Result<()> = SockRef::from(stream).set_tcp_user_timeout(Some(within));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn what_is_accepted_asks_as_its_listener_was_told_to() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        ask(&SockRef::from(&listener)).unwrap();
        let address = listener.local_addr().unwrap();
        let (_client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (accepted, _) = accepted.unwrap();
        let socket = SockRef::from(&accepted);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), ASK);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), AGAIN);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), TIMES);
        assert_eq!(socket.tcp_user_timeout().unwrap(), None);
        must_take(&accepted, OF_CALLER);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(OF_CALLER));
    }

    #[test]
    fn who_must_take_is_not_asked_for_longer_than_others() {
        assert!(OF_CALLER.max(OF_ENDPOINT) <= ASK + AGAIN * TIMES);
    }
}
