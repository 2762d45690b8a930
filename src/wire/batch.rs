//! A run of ready messages that travels as one piece.

use bytes::{BufMut, Bytes, BytesMut};

/// What a data message carries. The wire's opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Text,
    Binary,
}

impl Kind {
    /// RFC 6455 section 5.2.
    #[must_use]
    pub const fn opcode(self) -> u8 {
        match self {
            Self::Text => 1,
            Self::Binary => 2,
        }
    }
}

/// One message of a [`Batch`], sharing the batch's bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Message {
    pub kind: Kind,
    pub payload: Bytes,
}

impl Message {
    #[must_use]
    pub fn text(payload: impl Into<Bytes>) -> Self {
        Self { kind: Kind::Text, payload: payload.into() }
    }

    #[must_use]
    pub fn binary(payload: impl Into<Bytes>) -> Self {
        Self { kind: Kind::Binary, payload: payload.into() }
    }
}

/// Whole messages, one after another, in canonical form. Cheap to clone.
///
/// *Invariant:* `bytes` is exactly `messages` canonical frames; only [`BatchBuilder`] and
/// the codec make one, and [`Batch::from_wire`] checks what a peer sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Batch {
    bytes: Bytes,
    messages: u32,
}

impl Batch {
    /// A batch of one.
    #[must_use]
    pub fn one(message: &Message) -> Self {
        let mut builder = BatchBuilder::default();
        builder.push(message.kind, &message.payload);
        builder.finish()
    }

    /// Checks bytes that came from outside. None if they are not whole canonical frames.
    #[must_use]
    pub fn from_wire(bytes: Bytes) -> Option<Self> {
        let (mut at, mut messages) = (0, 0u32);
        while at < bytes.len() {
            let header = Header::parse(&bytes[at..])?;
            at = at.checked_add(header.len)?.checked_add(header.payload)?;
            messages = messages.checked_add(1)?;
        }
        (at == bytes.len()).then_some(Self { bytes, messages })
    }

    /// The frames as they go to a client that negotiated no extension.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// Number of messages.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.messages
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// Size in bytes, headers included: what windows and budgets count.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.bytes.len()
    }

    /// The messages, each sharing the batch's bytes.
    pub fn messages(&self) -> impl Iterator<Item = Message> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let header = Header::parse(&self.bytes[at..])?;
            let start = at + header.len;
            at = start + header.payload;
            Some(Message { kind: header.kind, payload: self.bytes.slice(start..at) })
        })
    }

    /// The batch without its first `n` messages.
    #[must_use]
    pub fn skip(&self, n: u32) -> Self {
        if n >= self.messages {
            return Self::default();
        }
        let mut at = 0;
        for _ in 0..n {
            let Some(header) = Header::parse(&self.bytes[at..]) else { break };
            at += header.len + header.payload;
        }
        Self { bytes: self.bytes.slice(at..), messages: self.messages - n }
    }
}

/// Header of a canonical frame.
struct Header {
    kind: Kind,
    len: usize,
    payload: usize,
}

impl Header {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let kind = match *bytes.first()? {
            0x81 => Kind::Text,
            0x82 => Kind::Binary,
            _ => return None,
        };
        let (len, payload) = match *bytes.get(1)? {
            short @ 0..=125 => (2, usize::from(short)),
            126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?))),
            127 => {
                let long = u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?);
                (10, usize::try_from(long).ok()?)
            }
            _ => return None,
        };
        // The shortest form, or the bytes would not be those that the messages have.
        let shortest = match len {
            4 => payload > 125,
            10 => payload > 0xFFFF,
            _ => true,
        };
        shortest.then_some(Self { kind, len, payload })
    }
}

/// Collects messages into a [`Batch`].
#[derive(Debug, Default)]
pub struct BatchBuilder {
    bytes: BytesMut,
    messages: u32,
}

impl BatchBuilder {
    /// Appends one message, copying its payload.
    pub fn push(&mut self, kind: Kind, payload: &[u8]) {
        self.bytes.reserve(payload.len() + 10);
        put_header(&mut self.bytes, 0x80 | kind.opcode(), payload.len());
        self.bytes.put_slice(payload);
        self.messages += 1;
    }

    /// Appends `messages` frames that are canonical already.
    pub(super) fn push_frames(&mut self, frames: &[u8], messages: u32) {
        self.bytes.put_slice(frames);
        self.messages += messages;
    }

    /// For writing canonical frames in place; each is then told to [`Self::count`].
    pub(super) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.bytes
    }

    pub(super) fn count(&mut self, messages: u32) {
        self.messages += messages;
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// Bytes so far.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.bytes.len()
    }

    #[must_use]
    pub fn finish(self) -> Batch {
        Batch { bytes: self.bytes.freeze(), messages: self.messages }
    }
}

/// Writes an unmasked frame header.
pub(super) fn put_header(out: &mut BytesMut, first: u8, payload: usize) {
    out.put_u8(first);
    match payload {
        0..=125 => out.put_u8(u8::try_from(payload).unwrap_or(125)),
        126..=0xFFFF => {
            out.put_u8(126);
            out.put_u16(u16::try_from(payload).unwrap_or(u16::MAX));
        }
        _ => {
            out.put_u8(127);
            out.put_u64(payload as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(sizes: &[usize]) -> Batch {
        let mut builder = BatchBuilder::default();
        for (n, size) in sizes.iter().enumerate() {
            let kind = if n % 2 == 0 { Kind::Text } else { Kind::Binary };
            builder.push(kind, &vec![b'a'; *size]);
        }
        builder.finish()
    }

    #[test]
    fn messages_come_out_as_they_went_in() {
        let sizes = [0, 1, 125, 126, 65_535, 65_536];
        let batch = batch(&sizes);
        assert_eq!(batch.len(), 6);
        assert_eq!(batch.messages().map(|m| m.payload.len()).collect::<Vec<_>>(), sizes);
        assert_eq!(
            batch.skip(4).messages().map(|m| m.payload.len()).collect::<Vec<_>>(),
            &sizes[4..]
        );
        assert!(batch.skip(6).is_empty());
        assert_eq!(Batch::from_wire(batch.bytes().clone()), Some(batch));
    }

    #[test]
    fn bytes_that_are_not_whole_frames_are_no_batch() {
        let whole = batch(&[3]).into_bytes();
        assert_eq!(Batch::from_wire(whole.slice(..whole.len() - 1)), None);
        assert_eq!(Batch::from_wire(Bytes::from_static(&[0x89, 0])), None);
        assert_eq!(Batch::from_wire(Bytes::from_static(&[0x81, 126, 0, 1, b'x'])), None);
        assert_eq!(
            Batch::from_wire(Bytes::from_static(&[
                0x81, 127, 255, 255, 255, 255, 255, 255, 255, 255
            ])),
            None
        );
    }
}
