//! From bytes of the wire to messages: RFC 6455 section 5, strictly, without any I/O.

use bytes::{Bytes, BytesMut};

use super::{
    batch::{Batch, BatchBuilder, Kind, put_header},
    deflate::{self, InflateError},
    frame::{Fault, Header, Role, is_close_code, put_unmasked},
};

/// Largest batch in bytes, unless it is one message. A reader that lags is charged by it.
pub const BATCH_BYTES: usize = 64 * 1024;

/// Longest compressed message, in bytes of the wire, that joins a batch which has begun. Whether it
/// fits is known once it is inflated; the next batch then inflates it again.
const TOGETHER_BYTES: usize = 1024;

/// What a Close frame said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseFrame {
    pub code: u16,
    /// At most 123 bytes.
    pub reason: String,
}

/// One step of what the peer sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// All whole data messages up to the next control frame, never empty.
    Messages(Batch),
    Ping(Bytes),
    Pong(Bytes),
    /// The peer's last word; whatever follows it is ignored.
    Close(Option<CloseFrame>),
}

impl From<InflateError> for Fault {
    fn from(error: InflateError) -> Self {
        match error {
            InflateError::TooLarge => Self::SIZE,
            InflateError::Corrupt => Self { close: 1007, what: "compressed data is corrupt" },
        }
    }
}

/// What [`Decoder::decode`] made of its input.
#[derive(Debug)]
pub(super) struct Step {
    /// Bytes of the input that are done with.
    pub consumed: usize,
    /// None: the input holds no further whole frame.
    pub incoming: Option<Incoming>,
}

/// The state that outlives one read: nothing but an unfinished message and the end.
#[derive(Debug)]
pub(super) struct Decoder {
    role: Role,
    deflate: bool,
    /// Largest message in bytes, after inflation.
    max: usize,
    /// Boxed, for few sessions ever see one.
    fragment: Option<Box<Fragment>>,
    /// A fault behind messages that are delivered first.
    failed: Option<Fault>,
    /// A Close or a fault has come: nothing that follows counts.
    over: bool,
}

/// A message of which the final frame has not come.
#[derive(Debug)]
struct Fragment {
    kind: Kind,
    compressed: bool,
    data: BytesMut,
    /// How many bytes of `data` are known to be UTF-8.
    checked: usize,
}

/// What one frame came to.
enum Frame {
    /// Bytes of a data frame that was taken into the batch or the fragment.
    Data(usize),
    /// Bytes of a control frame, and what it says.
    Control(usize, Incoming),
    /// The frame is incomplete, or belongs behind the batch at hand.
    Stop,
}

impl Decoder {
    pub(super) fn new(role: Role, max: usize, deflate: bool) -> Self {
        Self { role, deflate, max, fragment: None, failed: None, over: false }
    }

    /// Bytes of a message whose final frame has not come.
    pub(super) fn unfinished(&self) -> usize {
        self.fragment.as_ref().map_or(0, |fragment| fragment.data.len())
    }

    /// Takes whole frames from the start of `input`: data frames up to a batch, or one
    /// control frame. Messages ahead of a fault come out first, the fault by the next call.
    pub(super) fn decode(&mut self, input: &[u8]) -> Result<Step, Fault> {
        if let Some(fault) = self.failed.take() {
            self.over = true;
            return Err(fault);
        }
        if self.over {
            return Ok(Step { consumed: input.len(), incoming: None });
        }
        let mut batch = BatchBuilder::default();
        let mut consumed = 0;
        loop {
            if self.fragment.is_none() {
                consumed += self.take_plain(&input[consumed..], &mut batch);
            }
            match self.take_frame(&input[consumed..], &mut batch) {
                Ok(Frame::Data(bytes)) => consumed += bytes,
                Ok(Frame::Control(bytes, incoming)) => {
                    self.over = matches!(incoming, Incoming::Close(_));
                    return Ok(Step { consumed: consumed + bytes, incoming: Some(incoming) });
                }
                Ok(Frame::Stop) => break,
                Err(fault) if batch.is_empty() => {
                    self.over = true;
                    return Err(fault);
                }
                Err(fault) => {
                    self.failed = Some(fault);
                    break;
                }
            }
        }
        let incoming = (!batch.is_empty()).then(|| Incoming::Messages(batch.finish()));
        Ok(Step { consumed, incoming })
    }

    /// The fast path: a run of whole, final, uncompressed data frames, measured first so
    /// that it is copied into memory of its very size. Returns the bytes taken; what it
    /// does not understand or may not take it leaves to [`Self::take_frame`].
    fn take_plain(&self, input: &[u8], batch: &mut BatchBuilder) -> usize {
        let saved = if self.role == Role::Server { 4 } else { 0 };
        let (mut wire, mut canonical, mut frames) = (0, 0, 0);
        while let Ok(Some(header)) = Header::parse(&input[wire..], self.role, false) {
            let weight = batch.weight() + canonical;
            let size = header.size() - saved;
            let whole = header.size() <= input.len() - wire;
            let room = weight == 0 || weight + size <= BATCH_BYTES;
            if !header.is_plain() || header.payload > self.max || !whole || !room {
                break;
            }
            if self.role == Role::Client && !header.is_valid(&input[wire + header.len..]) {
                break;
            }
            wire += header.size();
            canonical += size;
            frames += 1;
        }
        if frames == 0 {
            return 0;
        }
        batch.buffer().reserve(canonical);
        match self.role {
            Role::Client => {
                batch.push_frames(&input[..wire], frames);
                wire
            }
            Role::Server => self.unmask_plain(&input[..wire], batch),
        }
    }

    /// Copies measured frames in canonical form, up to the first that is not UTF-8.
    fn unmask_plain(&self, input: &[u8], batch: &mut BatchBuilder) -> usize {
        let mut wire = 0;
        while let Ok(Some(header)) = Header::parse(&input[wire..], self.role, false) {
            let start = batch.weight();
            let out = batch.buffer();
            put_header(out, header.first, header.payload);
            let payload = out.len();
            put_unmasked(out, &input[wire + header.len..wire + header.size()], header.key);
            if !header.is_valid(&out[payload..]) {
                out.truncate(start);
                break;
            }
            batch.count(1);
            wire += header.size();
        }
        wire
    }

    /// One frame of any kind. Changes nothing unless it takes the frame.
    fn take_frame(&mut self, input: &[u8], batch: &mut BatchBuilder) -> Result<Frame, Fault> {
        let Some(header) = Header::parse(input, self.role, self.deflate)? else {
            return Ok(Frame::Stop);
        };
        if header.opcode() >= 8 {
            if !batch.is_empty() || input.len() < header.size() {
                return Ok(Frame::Stop);
            }
            let incoming = control(&header, &input[header.len..header.size()])?;
            return Ok(Frame::Control(header.size(), incoming));
        }
        self.check_sequence(&header)?;
        // A message in fragments starts a batch of its own: its size is known too late.
        let crowded = !batch.is_empty()
            && (self.fragment.is_some()
                || (header.is_compressed() && header.payload > TOGETHER_BYTES)
                || batch.weight() + header.size() > BATCH_BYTES);
        if crowded || input.len() < header.size() {
            return Ok(Frame::Stop);
        }

        let mut fragment = self.fragment.take().map_or_else(|| Fragment::new(&header), |f| *f);
        let payload = &input[header.len..header.size()];
        fragment.data.reserve(payload.len());
        put_unmasked(&mut fragment.data, payload, header.key);
        if !header.is_final() {
            fragment.check_text()?;
            self.fragment = Some(Box::new(fragment));
            return Ok(Frame::Data(header.size()));
        }
        let taken = fragment.finish(self.max, batch)?;
        Ok(if taken { Frame::Data(header.size()) } else { Frame::Stop })
    }

    /// A frame may start or continue a message here, and the message may be that large.
    fn check_sequence(&self, header: &Header) -> Result<(), Fault> {
        let (so_far, compressed) = match (&self.fragment, header.opcode()) {
            (None, 0) => return Err(Fault::protocol("continuation of no message")),
            (Some(fragment), 0) => (fragment.data.len(), fragment.compressed),
            (Some(_), _) => return Err(Fault::protocol("new message within a message")),
            (None, _) => (0, header.is_compressed()),
        };
        // What cannot be compressed grows a little by the attempt.
        let slack = if compressed { self.max / 8 + 64 } else { 0 };
        if header.payload > self.max.saturating_add(slack).saturating_sub(so_far) {
            return Err(Fault::SIZE);
        }
        Ok(())
    }
}

impl Fragment {
    fn new(header: &Header) -> Self {
        let kind = if header.opcode() == 1 { Kind::Text } else { Kind::Binary };
        Self { kind, compressed: header.is_compressed(), data: BytesMut::new(), checked: 0 }
    }

    /// Refuses text that no further fragment can make UTF-8 again.
    fn check_text(&mut self) -> Result<(), Fault> {
        if self.kind != Kind::Text || self.compressed {
            return Ok(());
        }
        match simdutf8::compat::from_utf8(&self.data[self.checked..]) {
            Ok(_) => self.checked = self.data.len(),
            Err(error) if error.error_len().is_none() => self.checked += error.valid_up_to(),
            Err(_) => return Err(Fault::UTF8),
        }
        Ok(())
    }

    /// Appends the whole message to `batch`; false if it is too large to go with others.
    fn finish(self, max: usize, batch: &mut BatchBuilder) -> Result<bool, Fault> {
        let append = |payload: &[u8], batch: &mut BatchBuilder| {
            let unchecked = payload.get(self.checked..).unwrap_or_default();
            if self.kind == Kind::Text && simdutf8::basic::from_utf8(unchecked).is_err() {
                return Err(Fault::UTF8);
            }
            if !batch.is_empty() && batch.weight() + payload.len() + 10 > BATCH_BYTES {
                return Ok(false);
            }
            batch.push(self.kind, payload);
            Ok(true)
        };
        if self.compressed {
            deflate::inflate(&self.data, max, |payload| append(payload, batch))?
        } else {
            append(&self.data, batch)
        }
    }
}

fn control(header: &Header, payload: &[u8]) -> Result<Incoming, Fault> {
    let mut data = BytesMut::with_capacity(payload.len());
    put_unmasked(&mut data, payload, header.key);
    let data = data.freeze();
    match header.opcode() {
        9 => Ok(Incoming::Ping(data)),
        10 => Ok(Incoming::Pong(data)),
        _ => close(&data).map(Incoming::Close),
    }
}

fn close(payload: &[u8]) -> Result<Option<CloseFrame>, Fault> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        let fault = Fault::protocol("close frame of one byte");
        return if payload.is_empty() { Ok(None) } else { Err(fault) };
    };
    let code = u16::from_be_bytes(*code);
    if !is_close_code(code) {
        return Err(Fault::protocol("close code may not be sent"));
    }
    let reason = simdutf8::basic::from_utf8(reason)
        .map_err(|_| Fault::protocol("close reason is not UTF-8"))?;
    Ok(Some(CloseFrame { code, reason: reason.to_owned() }))
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
