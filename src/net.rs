//! Where connections come from: the machine's network, or the simulated one of the feature
//! `simulation`. The only module that names either, so that everything above it runs on both.

use std::{io, time::Duration};

#[cfg(not(feature = "simulation"))]
pub use tokio::net::{TcpListener, TcpStream};
#[cfg(feature = "simulation")]
pub use turmoil::net::{TcpListener, TcpStream};

/// Connects to a host by name. Addresses that do not answer hold up the others no longer than
/// [`STAGGER`] each. Without a limit of its own; cancel-safe.
///
/// # Errors
/// The name has no address, or the last failure of those that it has.
#[cfg(not(feature = "simulation"))]
pub async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    race(tokio::net::lookup_host((host, port)).await?).await
}

/// The simulated network gives each name one address.
///
/// # Errors
/// The host is not there.
#[cfg(feature = "simulation")]
pub async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    TcpStream::connect((host, port)).await
}

/// Head start of an address over the next one (RFC 8305).
#[cfg(not(feature = "simulation"))]
const STAGGER: Duration = Duration::from_millis(250);

/// Addresses of a name that are tried.
#[cfg(not(feature = "simulation"))]
const MAX_ADDRESSES: usize = 8;

/// The first connection that is made to one of these, each tried [`STAGGER`] after the one
/// before, or at once when that has failed.
#[cfg(not(feature = "simulation"))]
async fn race(addresses: impl Iterator<Item = std::net::SocketAddr>) -> io::Result<TcpStream> {
    use futures_util::{StreamExt as _, stream::FuturesUnordered};

    let mut waiting = addresses.take(MAX_ADDRESSES);
    let mut tried = FuturesUnordered::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        if let Some(address) = waiting.next() {
            tried.push(TcpStream::connect(address));
        }
        match tokio::time::timeout(STAGGER, tried.next()).await {
            Ok(Some(Ok(stream))) => return Ok(stream),
            Ok(Some(Err(error))) => last = error,
            Ok(None) => return Err(last),
            Err(_) => {}
        }
    }
}

/// Sends what is written at once, and probes a peer that says nothing for `silence`: a dead
/// one is found within about twice that. Neither is needed to serve; a kernel that refuses
/// one costs latency or a late notice.
pub fn tune(stream: &TcpStream, silence: Duration) {
    drop(stream.set_nodelay(true));
    #[cfg(feature = "simulation")]
    let _ = silence;
    #[cfg(not(feature = "simulation"))]
    {
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(silence)
            .with_interval(silence / 3)
            .with_retries(3);
        drop(socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive));
    }
}

/// Makes the end of this connection a reset: what was not delivered is lost, and its peer is told
/// so. A kernel that refuses this, and the simulated network, end it as ever.
pub fn reset_at_end(stream: &TcpStream) {
    #[cfg(feature = "simulation")]
    let _ = stream;
    #[cfg(not(feature = "simulation"))]
    drop(socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)));
}

#[cfg(all(test, not(feature = "simulation")))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_tuned_connection_is_probed_and_does_not_wait_for_more_to_send() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        tune(&stream, Duration::from_secs(45));
        let socket = socket2::SockRef::from(&stream);
        assert!(socket.keepalive().unwrap() && stream.nodelay().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(45));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(15));
    }

    #[tokio::test]
    async fn a_name_is_reached_though_its_first_address_does_not_answer_and_another_refuses() {
        // The queue of this listener is full, so the kernel drops who else comes.
        let mute = tokio::net::TcpSocket::new_v4().unwrap();
        mute.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = mute.listen(1).unwrap();
        let mute = listener.local_addr().unwrap();
        let mut queue = Vec::new();
        while let Ok(stream) =
            tokio::time::timeout(Duration::from_millis(500), TcpStream::connect(mute)).await
        {
            queue.push(stream.unwrap());
        }
        let sound = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let refusing = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let sound = sound.local_addr().map(|address| (address, sound)).unwrap();
        let limit = STAGGER * 20;
        let race = race([mute, refusing, sound.0].into_iter());
        let stream = tokio::time::timeout(limit, race).await.unwrap().unwrap();
        assert_eq!(stream.peer_addr().unwrap(), sound.0);
        let refused = super::race([refusing].into_iter()).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let none = super::race(std::iter::empty()).await.unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::NotFound);
    }
}
