//! What tonic has to know of connections to speak over whichever network there is.

#[cfg(not(feature = "simulation"))]
pub(super) use self::real::{Stream, connect, wrap};
#[cfg(feature = "simulation")]
pub(super) use self::simulated::{Stream, connect, wrap};

#[cfg(not(feature = "simulation"))]
mod real {
    use tonic::transport::{Channel, Endpoint, Error};

    /// A connection of a peer.
    pub(in crate::peer) type Stream = crate::net::TcpStream;

    /// As tonic takes it.
    pub(in crate::peer) fn wrap(stream: crate::net::TcpStream) -> Stream {
        stream
    }

    /// Connects. Cancel-safe.
    pub(in crate::peer) async fn connect(endpoint: &Endpoint) -> Result<Channel, Error> {
        endpoint.connect().await
    }
}

#[cfg(feature = "simulation")]
mod simulated {
    use std::{
        io,
        pin::Pin,
        task::{Context, Poll},
    };

    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
    use tonic::transport::{
        Channel, Endpoint, Error,
        server::{Connected, TcpConnectInfo},
    };

    use crate::net::TcpStream;

    /// A connection of a peer.
    pub(in crate::peer) struct Stream(TcpStream);

    /// As tonic takes it.
    pub(in crate::peer) fn wrap(stream: TcpStream) -> Stream {
        Stream(stream)
    }

    /// Connects. Cancel-safe.
    pub(in crate::peer) async fn connect(endpoint: &Endpoint) -> Result<Channel, Error> {
        let connector = tower::service_fn(async |uri: http::Uri| {
            let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
            TcpStream::connect(authority).await.map(TokioIo::new)
        });
        endpoint.connect_with_connector(connector).await
    }

    impl Connected for Stream {
        type ConnectInfo = TcpConnectInfo;

        fn connect_info(&self) -> TcpConnectInfo {
            TcpConnectInfo {
                local_addr: self.0.local_addr().ok(),
                remote_addr: self.0.peer_addr().ok(),
            }
        }
    }

    impl AsyncRead for Stream {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Stream {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }
}
