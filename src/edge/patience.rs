//! A client's connection on which no write waits for ever. Over HTTP nobody else looks: hyper
//! writes as fast as the client takes, and keep-alives of TCP are answered by a machine whose
//! program does not read.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

/// Ends with `TimedOut` when what is to be written has waited for `limit` without a byte of
/// it being taken.
pub(super) struct Patient<S> {
    io: S,
    limit: Duration,
    /// Since a write found no room.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    pub(super) fn new(io: S, limit: Duration) -> Self {
        Self { io, limit, stalled: None }
    }

    pub(super) fn into_inner(self) -> S {
        self.io
    }

    /// Of a write that came to `poll`.
    fn judge(
        &mut self,
        poll: Poll<io::Result<usize>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if poll.is_ready() {
            self.stalled = None;
            return poll;
        }
        let limit = self.limit;
        let begin = || Box::pin(sleep_until(Instant::now() + limit));
        let stalled = self.stalled.get_or_insert_with(begin);
        stalled.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.io).poll_write(cx, buf);
        self.judge(poll, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.judge(poll, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_write_that_nobody_takes_ends_after_the_limit() {
        let (ours, _theirs) = duplex(16);
        let began = Instant::now();
        let written = Patient::new(ours, LIMIT).write_all(&[0; 17]).await;
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(began.elapsed().as_secs(), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_is_slow_has_all_the_time() {
        let (ours, mut theirs) = duplex(16);
        let reading = tokio::spawn(async move {
            for _ in 0..100 {
                tokio::time::sleep(LIMIT.mul_f64(0.97)).await;
                theirs.read_u8().await.unwrap();
            }
        });
        Patient::new(ours, LIMIT).write_all(&[0; 16 + 99]).await.unwrap();
        reading.await.unwrap();
    }
}
