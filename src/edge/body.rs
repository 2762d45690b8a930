//! The body of a request: received, inflated, bounded, and counted in the node's budget.

use std::time::Duration;

use axum::body::{Body, Bytes};
use bytes::BytesMut;
use http::{HeaderMap, HeaderValue, header::CONTENT_ENCODING};
use http_body_util::{BodyExt as _, Limited};
use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};
use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout_at},
};

use super::{Edge, pace::SLOWEST};
use crate::{
    error::{Blame, Code, Error, Result},
    wire::Share,
};

/// Window that every zstd frame may ask for, in bytes: RFC 9659 has encoders of HTTP bodies stay
/// within it. A frame in a single segment names its content as its window, so where messages
/// may be larger, windows may be as large as they.
const WINDOW: usize = 8 * 1024 * 1024;

/// What a zstd block becomes at most (RFC 8878).
const BLOCK: usize = 128 * 1024;

/// The body, inflated and bounded, with what it counts for as long as the caller keeps it. When
/// this is dropped, what is being inflated is ended first, and counts until then.
pub(super) async fn read(headers: &HeaderMap, body: Body, edge: &Edge) -> Result<(Bytes, Share)> {
    let limit = edge.limits.max_message_bytes;
    let mut share = edge.unfinished.share();
    let bytes = receive(body, limit, edge.limits.upgrade_timeout, &mut share).await?;
    match headers.get(CONTENT_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"identity") => Ok((bytes, share)),
        Some(b"zstd") => {
            // Not on the threads that move everybody's frames: megabytes take a while.
            let inflating = spawn_blocking(move || {
                let plain = inflate(&bytes, limit, &mut share)?;
                Ok((plain, share))
            });
            // A decoder that panics has met what is no zstd either.
            inflating.await.unwrap_or_else(|_| Err(broken()))
        }
        Some(_) => {
            Err(Error::new(Code::InvalidRequest, "content-encoding must be identity or zstd"))
        }
    }
}

/// The body as it was sent. A client has `patience` and then a second for each
/// [`SLOWEST`] bytes: who sends less holds a place that others need.
async fn receive(body: Body, limit: usize, patience: Duration, share: &mut Share) -> Result<Bytes> {
    let mut deadline = Instant::now() + patience;
    let mut body = std::pin::pin!(Limited::new(body, limit));
    let mut bytes = BytesMut::new();
    loop {
        let frame = timeout_at(deadline, body.frame()).await.map_err(|_| too_slow())?;
        let Some(frame) = frame else { return Ok(bytes.freeze()) };
        if let Ok(data) = frame.map_err(|_| too_large())?.into_data() {
            deadline += Duration::from_secs(1)
                .mul_f64(f64::from(u32::try_from(data.len()).unwrap_or(u32::MAX)) / SLOWEST);
            bytes.extend_from_slice(&data);
            // It grows by doubling: what it has room for is what it costs.
            if !share.holds(bytes.capacity()) {
                return Err(crowded());
            }
        }
    }
}

/// What zstd frames, one after another, hold. A frame's header is judged before anything of it is
/// inflated, and no more than a block is inflated before its cost is.
pub(super) fn inflate(sent: &[u8], limit: usize, share: &mut Share) -> Result<Bytes> {
    let max_window = limit.max(WINDOW);
    let mut rest = sent;
    let mut plain = Vec::new();
    while !rest.is_empty() {
        let mut frame = FrameDecoder::new();
        frame.set_max_window_size(max_window as u64);
        match frame.init(&mut rest) {
            Ok(()) if frame.content_size() > limit as u64 => return Err(too_large()),
            Ok(()) => {}
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                length,
                ..
            })) => {
                let behind = usize::try_from(length).ok().and_then(|length| rest.get(length..));
                rest = behind.ok_or_else(broken)?;
                continue;
            }
            Err(FrameDecoderError::WindowSizeTooBig { .. }) => {
                let text = "the body needs a larger zstd window than this node accepts";
                return Err(Error::new(Code::FrameTooLarge, text));
            }
            Err(_) => return Err(broken()),
        }
        while !frame.is_finished() {
            let one = BlockDecodingStrategy::UptoBlocks(1);
            frame.decode_blocks(&mut rest, one).map_err(|_| broken())?;
            if frame.can_collect() > limit - plain.len() {
                return Err(too_large());
            }
            frame.collect_to_writer(&mut plain).map_err(|_| broken())?;
            let window = frame.blocks_decoded().saturating_mul(BLOCK).min(max_window);
            if !share.holds(sent.len() + window + plain.capacity()) {
                return Err(crowded());
            }
        }
    }
    Ok(plain.into())
}

fn broken() -> Error {
    Error::new(Code::InvalidRequest, "the body is not valid zstd")
}

fn too_slow() -> Error {
    Error::new(Code::InvalidRequest, "the body came too slowly")
}

/// There is no room in the node's budget.
pub(super) fn crowded() -> Error {
    let text = "this node holds as many unfinished or waiting messages as it may; retry";
    Error::new(Code::SessionUnavailable, text).blame(Blame::Us)
}

/// A body above the limit of messages.
pub(super) fn too_large() -> Error {
    Error::new(Code::FrameTooLarge, "the body is larger than this node accepts")
}
