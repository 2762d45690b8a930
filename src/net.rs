//! Where connections come from: the machine's network, or the simulated one of the feature
//! `simulation`. The only module that names either, so that everything above it runs on both.

use std::time::Duration;

#[cfg(not(feature = "simulation"))]
pub use tokio::net::{TcpListener, TcpStream};
#[cfg(feature = "simulation")]
pub use turmoil::net::{TcpListener, TcpStream};

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
}
