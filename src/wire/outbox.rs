//! The sending half of a socket: a queue of frames, and as few writes as they fit into.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use rand::Rng;
use tokio::io::AsyncWrite;

use super::{
    batch::{Batch, put_header},
    deflate,
    frame::{CONTROL_BYTES, Header, Role, is_close_code, mask_copy},
    scratch::with_scratch,
};

/// Slices handed to the kernel by one call.
const SLICES: usize = 64;

/// The longest header of a masked frame, in bytes.
const MASKED_HEADER_BYTES: usize = 14;

/// A queue that has grown beyond this many entries is given back once it is empty.
const KEEP_ENTRIES: usize = 4;

/// Frames on their way out. Empty, it owns next to nothing.
#[derive(Debug)]
pub(super) struct Outbox {
    role: Role,
    deflate: bool,
    /// A Close was queued: nothing may follow it.
    closed: bool,
    /// Unmasked frames. A client masks them on their way to the kernel.
    queue: VecDeque<Bytes>,
    /// Bytes in `queue`.
    queued: usize,
    /// Masked bytes that the kernel did not take.
    unsent: Bytes,
    /// Bytes of the front entry that belong to a frame whose header is masked already, and
    /// the key for the first of them.
    payload: usize,
    key: [u8; 4],
}

impl Outbox {
    pub(super) fn new(role: Role, deflate: bool) -> Self {
        Self {
            role,
            deflate,
            closed: false,
            queue: VecDeque::new(),
            queued: 0,
            unsent: Bytes::new(),
            payload: 0,
            key: [0; 4],
        }
    }

    /// Bytes not yet written, without the masks to come.
    pub(super) fn pending(&self) -> usize {
        self.queued + self.unsent.len()
    }

    pub(super) fn push_batch(&mut self, batch: &Batch) {
        let frames = if self.deflate { deflated(batch) } else { batch.bytes().clone() };
        self.push(frames);
    }

    /// `first` is the first byte of a control frame; what exceeds 125 bytes is cut.
    pub(super) fn push_control(&mut self, first: u8, payload: &[u8]) {
        let payload = &payload[..payload.len().min(CONTROL_BYTES)];
        let mut frame = BytesMut::with_capacity(2 + payload.len());
        put_header(&mut frame, first, payload.len());
        frame.extend_from_slice(payload);
        self.push(frame.freeze());
    }

    pub(super) fn push_close(&mut self, code: u16, reason: &str) {
        let mut payload = Vec::new();
        if is_close_code(code) {
            payload.extend_from_slice(&code.to_be_bytes());
            let cut = reason.floor_char_boundary(CONTROL_BYTES - payload.len());
            payload.extend_from_slice(&reason.as_bytes()[..cut]);
        }
        self.push_control(0x88, &payload);
        self.closed = true;
    }

    fn push(&mut self, frames: Bytes) {
        if self.closed || frames.is_empty() {
            return;
        }
        self.queued += frames.len();
        self.queue.push_back(frames);
    }

    /// Writes until nothing is pending. Cancel-safe.
    pub(super) fn poll_write(
        &mut self,
        io: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.pending() > 0 {
            ready!(match self.role {
                Role::Server => self.poll_write_plain(io, cx),
                Role::Client => self.poll_write_masked(io, cx),
            })?;
        }
        if self.queue.capacity() > KEEP_ENTRIES {
            self.queue = VecDeque::new();
        }
        Poll::Ready(Ok(()))
    }

    /// One write of as many entries as there are, as they are.
    fn poll_write_plain(
        &mut self,
        io: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let io = Pin::new(io);
        let mut written = if let (1, Some(only)) = (self.queue.len(), self.queue.front()) {
            ready!(io.poll_write(cx, only))?
        } else {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let used = self.queue.len().min(SLICES);
            for (slice, entry) in slices.iter_mut().zip(&self.queue) {
                *slice = IoSlice::new(entry);
            }
            ready!(io.poll_write_vectored(cx, &slices[..used]))?
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.queued -= written;
        while let Some(front) = self.queue.front_mut() {
            if written < front.len() {
                front.advance(written);
                break;
            }
            written -= front.len();
            self.queue.pop_front();
        }
        Poll::Ready(Ok(()))
    }

    /// One write of a scratch full of masked frames, or of what an earlier one left.
    fn poll_write_masked(
        &mut self,
        io: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let io = Pin::new(io);
        if !self.unsent.is_empty() {
            let written = ready!(io.poll_write(cx, &self.unsent))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent.advance(written);
            if self.unsent.is_empty() {
                self.unsent = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        with_scratch(|scratch| {
            let filled = self.fill_masked(scratch);
            let result = io.poll_write(cx, &scratch[..filled]);
            let written = match &result {
                Poll::Ready(Ok(written)) => *written,
                Poll::Ready(Err(_)) | Poll::Pending => 0,
            };
            if written < filled {
                self.unsent = Bytes::copy_from_slice(&scratch[written..filled]);
            }
            match result {
                Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                result => result.map_ok(|_| ()),
            }
        })
    }

    /// Moves frames from the queue to `scratch`, each masked with a fresh key; returns the
    /// bytes filled.
    fn fill_masked(&mut self, scratch: &mut [u8]) -> usize {
        let mut rng = rand::rng();
        let mut filled = 0;
        while let Some(front) = self.queue.front_mut() {
            if self.payload == 0 {
                if scratch.len() - filled < MASKED_HEADER_BYTES {
                    break;
                }
                let Ok(Some(header)) = Header::parse(front, Role::Client, true) else {
                    debug_assert!(false, "the queue holds whole frames");
                    self.queued -= front.len();
                    self.queue.pop_front();
                    continue;
                };
                let head = &mut scratch[filled..][..header.len + 4];
                self.key = rng.random();
                head[..header.len].copy_from_slice(&front[..header.len]);
                head[1] |= 0x80;
                head[header.len..].copy_from_slice(&self.key);
                filled += head.len();
                self.payload = header.payload;
                self.queued -= header.len;
                front.advance(header.len);
            }
            let bytes = self.payload.min(scratch.len() - filled);
            mask_copy(&mut scratch[filled..], &front[..bytes], self.key);
            filled += bytes;
            self.key.rotate_left(bytes % 4);
            self.payload -= bytes;
            self.queued -= bytes;
            front.advance(bytes);
            if front.is_empty() {
                self.queue.pop_front();
            }
            if self.payload > 0 {
                break;
            }
        }
        filled
    }
}

/// The frames of `batch`, those compressed that gain by it.
fn deflated(batch: &Batch) -> Bytes {
    let mut out = BytesMut::new();
    for message in batch.messages() {
        let first = 0x80 | message.kind.opcode();
        deflate::deflate(&message.payload, |smaller| {
            let (first, payload) = match smaller {
                Some(smaller) => (first | 0x40, smaller),
                None => (first, &message.payload[..]),
            };
            out.reserve(payload.len() + 10);
            put_header(&mut out, first, payload.len());
            out.extend_from_slice(payload);
        });
    }
    out.freeze()
}
