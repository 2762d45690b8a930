//! Accepting callers, on whichever network there is.

use std::net::SocketAddr;

use axum::{extract::connect_info::Connected, serve::IncomingStream};

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller(pub(super) SocketAddr);

impl Connected<IncomingStream<'_, Listener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Self {
        Self(*stream.remote_addr())
    }
}

#[cfg(not(feature = "simulation"))]
type Listener = crate::net::TcpListener;

/// As axum takes it.
#[cfg(not(feature = "simulation"))]
pub(super) fn of(listener: Listener) -> Listener {
    listener
}

#[cfg(feature = "simulation")]
pub(super) use self::simulated::{Listener, of};

#[cfg(feature = "simulation")]
mod simulated {
    use std::{io, net::SocketAddr};

    use crate::net::{TcpListener, TcpStream};

    /// axum knows the listeners of tokio only.
    pub(in crate::admin) struct Listener(TcpListener);

    pub(in crate::admin) fn of(listener: TcpListener) -> Listener {
        Listener(listener)
    }

    impl axum::serve::Listener for Listener {
        type Io = TcpStream;
        type Addr = SocketAddr;

        async fn accept(&mut self) -> (TcpStream, SocketAddr) {
            loop {
                if let Ok(accepted) = self.0.accept().await {
                    return accepted;
                }
            }
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            self.0.local_addr()
        }
    }
}
