//! From bytes of the wire to messages: RFC 6455 section 5, strictly, without any I/O.

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    batch::{Batch, BatchBuilder, Kind, put_header},
    deflate::{self, InflateError},
};

/// Largest batch in bytes, unless it is one message. A reader that lags is charged by it.
pub const BATCH_BYTES: usize = 64 * 1024;

/// A masked payload is copied and unmasked in blocks of this many bytes, so that the second
/// pass finds the block in the first-level cache. A multiple of the key's four bytes.
const UNMASK_BLOCK: usize = 8 * 1024;

/// Largest payload of a control frame, in bytes (RFC 6455 section 5.5).
pub(super) const CONTROL_BYTES: usize = 125;

/// Which end of the connection this is: it decides who masks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Receives masked frames, sends plain ones.
    Server,
    /// Receives plain frames, sends masked ones.
    Client,
}

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

/// A breach of the protocol, and the code to close with (1002, 1007 or 1009).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub close: u16,
    pub what: &'static str,
}

impl Fault {
    const fn protocol(what: &'static str) -> Self {
        Self { close: 1002, what }
    }

    const UTF8: Self = Self { close: 1007, what: "text is not UTF-8" };
    const SIZE: Self = Self { close: 1009, what: "message is too large" };
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
            && (self.fragment.is_some() || batch.weight() + header.size() > BATCH_BYTES);
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

/// Header of a frame, valid by itself for the role that received it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub first: u8,
    /// Bytes of the header, the key included.
    pub len: usize,
    /// Bytes of the payload.
    pub payload: usize,
    /// Zero for an unmasked frame.
    key: [u8; 4],
}

impl Header {
    /// None if `input` does not hold all of the header yet.
    pub(super) fn parse(input: &[u8], role: Role, deflate: bool) -> Result<Option<Self>, Fault> {
        let &[first, second, ..] = input else { return Ok(None) };
        let (opcode, short) = (first & 0x0F, usize::from(second & 0x7F));
        if !matches!(opcode, 0..=2 | 8..=10) {
            return Err(Fault::protocol("reserved opcode"));
        }
        let compressible = deflate && matches!(opcode, 1 | 2);
        if first & 0x30 != 0 || (first & 0x40 != 0 && !compressible) {
            return Err(Fault::protocol("reserved bit is set"));
        }
        if opcode >= 8 && (first & 0x80 == 0 || short > CONTROL_BYTES) {
            return Err(Fault::protocol("control frame is fragmented or too long"));
        }
        let masked = second & 0x80 != 0;
        if masked != (role == Role::Server) {
            return Err(Fault::protocol("frame is masked by the wrong side"));
        }
        let (mut len, payload) = match short {
            126 => {
                let Some(&bytes) = input[2..].first_chunk() else { return Ok(None) };
                (4, u64::from(u16::from_be_bytes(bytes)))
            }
            127 => {
                let Some(&bytes) = input[2..].first_chunk() else { return Ok(None) };
                (10, u64::from_be_bytes(bytes))
            }
            short => (2, short as u64),
        };
        let minimal = match len {
            4 => payload > 125,
            10 => payload > 0xFFFF && payload >> 63 == 0,
            _ => true,
        };
        if !minimal {
            return Err(Fault::protocol("length is not in its shortest form"));
        }
        let mut key = [0; 4];
        if masked {
            let Some(&bytes) = input[len..].first_chunk() else { return Ok(None) };
            key = bytes;
            len += 4;
        }
        let payload = usize::try_from(payload).unwrap_or(usize::MAX);
        Ok(Some(Self { first, len, payload, key }))
    }

    /// Header and payload, in bytes.
    pub(super) fn size(&self) -> usize {
        self.len.saturating_add(self.payload)
    }

    fn opcode(&self) -> u8 {
        self.first & 0x0F
    }

    fn is_final(&self) -> bool {
        self.first & 0x80 != 0
    }

    fn is_compressed(&self) -> bool {
        self.first & 0x40 != 0
    }

    /// A whole, uncompressed message in one frame: canonical but for the mask.
    fn is_plain(&self) -> bool {
        matches!(self.first, 0x81 | 0x82)
    }

    /// The payload at the start of `bytes` is what a plain frame of this kind may carry.
    fn is_valid(&self, bytes: &[u8]) -> bool {
        self.opcode() != 1 || simdutf8::basic::from_utf8(&bytes[..self.payload]).is_ok()
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

/// Codes that may stand in a Close frame: RFC 6455 section 7.4 and its IANA registry.
pub(super) const fn is_close_code(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// Appends `payload` unmasked; a key of zero copies.
fn put_unmasked(out: &mut BytesMut, payload: &[u8], key: [u8; 4]) {
    if key == [0; 4] {
        out.put_slice(payload);
        return;
    }
    for block in payload.chunks(UNMASK_BLOCK) {
        let start = out.len();
        out.put_slice(block);
        mask(&mut out[start..], key);
    }
}

/// Masks or unmasks in place, a word at a time.
fn mask(data: &mut [u8], key: [u8; 4]) {
    let [a, b, c, d] = key;
    let word = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, tail) = data.as_chunks_mut::<8>();
    for bytes in words {
        *bytes = (u64::from_ne_bytes(*bytes) ^ word).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

/// Copies `from` masked to the start of `to`, which is at least as long.
pub(super) fn mask_copy(to: &mut [u8], from: &[u8], key: [u8; 4]) {
    let to = &mut to[..from.len()];
    to.copy_from_slice(from);
    mask(to, key);
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
