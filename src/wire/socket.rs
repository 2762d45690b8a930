//! A WebSocket over any stream: reads into the thread's scratch, keeps only what is
//! incomplete, writes what is queued in as few calls as it takes.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    batch::Batch,
    budget::Share,
    codec::{Decoder, Incoming},
    frame::{Fault, Role},
    outbox::Outbox,
    scratch::with_scratch,
};

/// A remainder of at most this many bytes is read on from within the scratch; a larger one
/// grows where it is, or each read of a large frame would copy all of it.
const SMALL_REMAINDER_BYTES: usize = 4 * 1024;

/// What the handshake and the configuration settled.
#[derive(Clone, Copy, Debug)]
pub struct SocketOptions {
    /// Largest message to receive, in bytes, after reassembly and inflation.
    pub max_message_bytes: usize,
    /// permessage-deflate was negotiated, with both `no_context_takeover`.
    pub deflate: bool,
}

/// Why nothing more can be received.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The peer broke the protocol, or there is no room for its message; `close` is the code
    /// to tell it (1002, 1007 or 1009, or 1013).
    #[error("{what}")]
    Protocol { close: u16, what: &'static str },
}

impl From<Fault> for SocketError {
    fn from(Fault { close, what }: Fault) -> Self {
        Self::Protocol { close, what }
    }
}

/// One end of a WebSocket connection after its handshake.
///
/// It answers nothing by itself: pings, closes and faults are its owner's to answer.
#[derive(Debug)]
pub struct Socket<S> {
    io: S,
    decoder: Decoder,
    outbox: Outbox,
    /// Received and not yet decoded: as a rule nothing, or the start of a frame.
    rest: BytesMut,
    /// The decoder may have more to say without another read.
    ready: bool,
    /// The stream below may hold bytes that it took and did not send (TLS does).
    unflushed: bool,
    /// Of what all together may hold of messages that have not ended; None: no limit.
    share: Option<Share>,
}

/// What one read brought.
enum Read {
    Incoming(Incoming),
    Nothing,
    End,
}

impl<S> Socket<S> {
    /// Takes over a stream whose handshake is done; `leftover` arrived together with it.
    #[must_use]
    pub fn new(io: S, role: Role, options: SocketOptions, leftover: Bytes) -> Self {
        Self {
            io,
            decoder: Decoder::new(role, options.max_message_bytes, options.deflate),
            outbox: Outbox::new(role, options.deflate),
            ready: !leftover.is_empty(),
            unflushed: false,
            share: None,
            // An empty leftover may hold a buffer all the same.
            rest: if leftover.is_empty() { BytesMut::new() } else { leftover.into() },
        }
    }

    /// The same, which takes no more of what has not ended than its share can hold.
    #[must_use]
    pub fn within(mut self, share: Share) -> Self {
        self.share = Some(share);
        self
    }

    /// Whether [`Self::poll_flush`] has anything to do.
    #[must_use]
    pub fn needs_flush(&self) -> bool {
        self.unflushed || self.outbox.pending() > 0
    }

    /// Queues messages, sharing their bytes. Never blocks: bound it by [`Self::pending`].
    /// Like all that is queued after a Close, ignored then.
    pub fn queue(&mut self, batch: &Batch) {
        self.outbox.push_batch(batch);
    }

    /// Queues a Ping of at most 125 bytes; more is cut.
    pub fn queue_ping(&mut self, payload: &[u8]) {
        self.outbox.push_control(0x89, payload);
    }

    /// Queues a Pong of at most 125 bytes; more is cut.
    pub fn queue_pong(&mut self, payload: &[u8]) {
        self.outbox.push_control(0x8A, payload);
    }

    /// Queues the last frame. A reason is cut at 123 bytes; a code that may not be sent
    /// (such as 1005, no code) makes a Close without one.
    pub fn queue_close(&mut self, code: u16, reason: &str) {
        self.outbox.push_close(code, reason);
    }

    /// Bytes queued and not yet written.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.outbox.pending()
    }

    /// Bytes of a message whose end has not come.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.rest.len() + self.decoder.unfinished()
    }

    /// The stream below, for its options and addresses.
    pub fn get_ref(&self) -> &S {
        &self.io
    }

    /// Gives the stream back; what is queued or half received is lost.
    pub fn into_inner(self) -> S {
        self.io
    }
}

impl<S: AsyncRead + Unpin> Socket<S> {
    /// What comes next: None at the end of the stream, also in mid-frame. After a Close or a
    /// [`SocketError::Protocol`] only the end can follow. Cancel-safe.
    pub fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Incoming, SocketError>>> {
        loop {
            if self.ready {
                let step = self.decoder.decode(&self.rest);
                match step {
                    Ok(step) => {
                        self.rest.advance(step.consumed);
                        if self.rest.is_empty() {
                            self.rest = BytesMut::new();
                        }
                        if let Some(incoming) = step.incoming {
                            // What is left is less than before: there is room for it.
                            self.has_room();
                            return Poll::Ready(Some(Ok(incoming)));
                        }
                    }
                    Err(fault) => return Poll::Ready(Some(Err(self.fail(fault)))),
                }
                self.ready = false;
                // A copy, where the buffer is far larger than what is left of it; the start of
                // a large message that grows from read to read is not copied each time.
                if self.rest.capacity() > 2 * self.rest.len() + SMALL_REMAINDER_BYTES {
                    self.rest = BytesMut::from(&self.rest[..]);
                }
            }
            match ready!(self.poll_read(cx)) {
                Ok(Read::Incoming(incoming)) => {
                    self.has_room();
                    return Poll::Ready(Some(Ok(incoming)));
                }
                Ok(Read::Nothing) if self.has_room() => {}
                Ok(Read::Nothing) => return Poll::Ready(Some(Err(self.fail(Fault::CROWDED)))),
                Ok(Read::End) => return Poll::Ready(None),
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }

    /// Like [`Self::poll_recv`]. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Result<Incoming, SocketError>> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// One read, decoded where it lies if that can be.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Read, SocketError>> {
        with_scratch(|scratch| {
            let kept = self.rest.len();
            let small = kept <= SMALL_REMAINDER_BYTES;
            let start = if small { kept } else { 0 };
            let mut buffer = ReadBuf::new(&mut scratch[start..]);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
            let end = start + buffer.filled().len();
            if end == start {
                self.rest = BytesMut::new();
                return Poll::Ready(Ok(Read::End));
            }
            if !small {
                self.rest.extend_from_slice(&scratch[..end]);
                self.ready = true;
                return Poll::Ready(Ok(Read::Nothing));
            }
            scratch[..kept].copy_from_slice(&self.rest);
            let step = self.decoder.decode(&scratch[..end]).map_err(|fault| self.fail(fault))?;
            self.rest = BytesMut::from(&scratch[step.consumed..end]);
            self.ready = step.incoming.is_some();
            Poll::Ready(Ok(step.incoming.map_or(Read::Nothing, Read::Incoming)))
        })
    }

    /// Whether all that is kept here has its place in the budget.
    fn has_room(&mut self) -> bool {
        let held = self.unfinished();
        self.share.as_mut().is_none_or(|share| share.holds(held))
    }

    fn fail(&mut self, fault: Fault) -> SocketError {
        self.rest = BytesMut::new();
        self.ready = false;
        fault.into()
    }
}

impl<S: AsyncWrite + Unpin> Socket<S> {
    /// Writes everything queued, then flushes the stream. Cancel-safe.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.outbox.pending() > 0 {
            self.unflushed = true;
        }
        ready!(self.outbox.poll_write(&mut self.io, cx))?;
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    /// Like [`Self::poll_flush`]. Cancel-safe.
    pub async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Flushes, then shuts the sending side of the stream down. Cancel-safe.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.outbox.poll_write(&mut self.io, cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// Like [`Self::poll_shutdown`]. Cancel-safe.
    pub async fn shutdown(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_shutdown(cx)).await
    }
}

#[cfg(test)]
#[path = "socket_tests.rs"]
mod tests;
