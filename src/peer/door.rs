//! The way in to the peer listener, for those who have proven nothing yet: how many connections
//! there may be, and how long one may say nothing.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{Stream, stream};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};
use tonic::{
    Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::NamedService,
    transport::server::Connected,
};

use super::transport::{self, wrap};
use crate::net::TcpListener;

/// Connections of all peers, and of one address: a ring has one for each pair of nodes, and
/// nodes behind one address are of one machine.
const CONNECTIONS: usize = 1024;
const OF_ONE_ADDRESS: usize = 128;

/// How long a caller may take for the preface of HTTP/2, in bytes. Afterwards it has to answer
/// pings.
const PREFACE_WITHIN: Duration = Duration::from_secs(5);
const PREFACE: usize = 24;

/// How long a call may take that anybody may make.
const OPEN_CALL: Duration = Duration::from_secs(5);

/// Largest message of a call that anybody may make, in bytes.
pub(super) const OPEN_MESSAGE: usize = 4096;

/// At most one warning of refusals in so long.
const WARN: Duration = Duration::from_mins(1);

/// Pause after a failed accept (no file descriptors left), so that it does not spin.
pub(super) const RETRY: Duration = Duration::from_millis(20);

/// Counts connections. Clones share the count.
#[derive(Clone, Default)]
pub(super) struct Door(Arc<Mutex<Held>>);

#[derive(Default)]
struct Held {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
    warned: Option<Instant>,
}

/// A connection that counts, until it is dropped.
pub(super) struct Place {
    door: Door,
    address: IpAddr,
}

impl Door {
    /// Lets one more connection in, if there is room for it.
    pub(super) fn enter(&self, address: IpAddr) -> Option<Place> {
        let mut held = self.0.lock();
        let own = held.by_address.get(&address).copied().unwrap_or(0);
        if held.all >= CONNECTIONS || own >= OF_ONE_ADDRESS {
            if held.warned.is_none_or(|at| at.elapsed() >= WARN) {
                held.warned = Some(Instant::now());
                let all = held.all;
                tracing::warn!(%address, own, all, "too many connections of peers: refused");
            }
            return None;
        }
        held.all += 1;
        held.by_address.insert(address, own + 1);
        drop(held);
        Some(Place { door: self.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.door.0.lock();
        held.all -= 1;
        let own = held.by_address.get(&self.address).copied().unwrap_or(1) - 1;
        if own == 0 {
            held.by_address.remove(&self.address);
        } else {
            held.by_address.insert(self.address, own);
        }
    }
}

/// Accepts connections of peers, as many as there is room for.
pub(super) fn incoming(
    listener: TcpListener,
) -> impl Stream<Item = io::Result<Admitted<transport::Stream>>> {
    stream::unfold((listener, Door::default()), async |(listener, door)| {
        loop {
            let Ok((stream, address)) = listener.accept().await else {
                sleep(RETRY).await;
                continue;
            };
            let Some(place) = door.enter(address.ip()) else { continue };
            // Without it the end of each answer waits 40 ms for the caller's acknowledgement; a
            // socket that refuses the option still works.
            stream.set_nodelay(true).ok();
            return Some((Ok(Admitted::new(wrap(stream), place)), (listener, door)));
        }
    })
}

/// A connection that ends by itself if its preface does not come.
pub(super) struct Admitted<S> {
    inner: S,
    /// Bytes of the preface that are due, and until when.
    due: usize,
    until: Pin<Box<Sleep>>,
    _place: Place,
}

impl<S> Admitted<S> {
    pub(super) fn new(inner: S, place: Place) -> Self {
        Self { inner, due: PREFACE, until: Box::pin(sleep(PREFACE_WITHIN)), _place: place }
    }
}

impl<S: Connected> Connected for Admitted<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> S::ConnectInfo {
        self.inner.connect_info()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Admitted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.due > 0 && self.until.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        self.due = self.due.saturating_sub(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Admitted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// A service that anybody may call: its answer begins in time, or says that it did not.
#[derive(Clone)]
pub(super) struct Prompt<S>(pub(super) S);

impl<S: NamedService> NamedService for Prompt<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Prompt<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<Self::Response, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answer = self.0.call(request);
        Box::pin(async move {
            tokio::time::timeout(OPEN_CALL, answer).await.unwrap_or_else(|_| {
                Ok(Status::deadline_exceeded("the request did not come in time").into_http())
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[test]
    fn one_address_fills_no_more_than_its_share_and_all_no_more_than_there_is() {
        let door = Door::default();
        let enter = |n: u32| door.enter(IpAddr::V4(Ipv4Addr::from_bits(n)));
        let mut places: Vec<_> = std::iter::from_fn(|| enter(1)).collect();
        assert_eq!(places.len(), OF_ONE_ADDRESS);
        places.extend((2..).map_while(enter));
        assert_eq!(places.len(), CONNECTIONS);
        drop(places.remove(0));
        places.push(enter(1).unwrap());
        assert!(enter(1).is_none());
        drop(places);
        assert!(door.0.lock().by_address.is_empty(), "nothing is left behind");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_does_not_say_what_it_speaks_ends() {
        for said in [0, PREFACE - 1] {
            let (mut caller, end) = duplex(64);
            let place = Door::default().enter(Ipv4Addr::LOCALHOST.into()).unwrap();
            let mut end = Admitted::new(end, place);
            caller.write_all(&vec![b'P'; said]).await.unwrap();
            let began = Instant::now();
            let ended = end.read_to_end(&mut Vec::new()).await.unwrap_err();
            assert_eq!((ended.kind(), began.elapsed()), (io::ErrorKind::TimedOut, PREFACE_WITHIN));
        }
        let (mut caller, end) = duplex(64);
        let place = Door::default().enter(Ipv4Addr::LOCALHOST.into()).unwrap();
        let mut end = Admitted::new(end, place);
        caller.write_all(&[b'P'; PREFACE]).await.unwrap();
        let mut read = [0; PREFACE];
        end.read_exact(&mut read).await.unwrap();
        tokio::time::advance(PREFACE_WITHIN * 2).await;
        caller.write_all(b"later").await.unwrap();
        end.read_exact(&mut read[..5]).await.unwrap();
    }
}
