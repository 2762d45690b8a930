//! One frame by itself: its header, its mask, and what breaks the protocol in it.

use bytes::{BufMut, BytesMut};

/// Largest payload of a control frame, in bytes (RFC 6455 section 5.5).
pub(super) const CONTROL_BYTES: usize = 125;

/// A masked payload is copied and unmasked in blocks of this many bytes, so that the second
/// pass finds the block in the first-level cache. A multiple of the key's four bytes.
const UNMASK_BLOCK: usize = 8 * 1024;

/// Which end of the connection this is: it decides who masks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Receives masked frames, sends plain ones.
    Server,
    /// Receives plain frames, sends masked ones.
    Client,
}

/// A breach of the protocol, and the code to close with (1002, 1007 or 1009).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub close: u16,
    pub what: &'static str,
}

impl Fault {
    pub(super) const fn protocol(what: &'static str) -> Self {
        Self { close: 1002, what }
    }

    pub(super) const UTF8: Self = Self { close: 1007, what: "text is not UTF-8" };
    pub(super) const SIZE: Self = Self { close: 1009, what: "message is too large" };
    pub(super) const CROWDED: Self =
        Self { close: 1013, what: "too many unfinished messages on this node; retry" };
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
    pub key: [u8; 4],
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

    pub(super) fn opcode(&self) -> u8 {
        self.first & 0x0F
    }

    pub(super) fn is_final(&self) -> bool {
        self.first & 0x80 != 0
    }

    pub(super) fn is_compressed(&self) -> bool {
        self.first & 0x40 != 0
    }

    /// A whole, uncompressed message in one frame: canonical but for the mask.
    pub(super) fn is_plain(&self) -> bool {
        matches!(self.first, 0x81 | 0x82)
    }

    /// The payload at the start of `bytes` is what a plain frame of this kind may carry.
    pub(super) fn is_valid(&self, bytes: &[u8]) -> bool {
        self.opcode() != 1 || simdutf8::basic::from_utf8(&bytes[..self.payload]).is_ok()
    }
}

/// Codes that may stand in a Close frame: RFC 6455 section 7.4 and its IANA registry.
pub(super) const fn is_close_code(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// Appends `payload` unmasked; a key of zero copies.
pub(super) fn put_unmasked(out: &mut BytesMut, payload: &[u8], key: [u8; 4]) {
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
mod tests {
    use super::*;

    const KEY: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

    #[test]
    fn masking_is_the_same_a_word_or_a_byte_at_a_time() {
        for len in [0, 1, 3, 7, 8, 9, 63, 64, UNMASK_BLOCK - 1, UNMASK_BLOCK + 5] {
            let data: Vec<u8> = (0_u8..=255).cycle().take(len).collect();
            let expected: Vec<u8> =
                data.iter().zip(KEY.iter().cycle()).map(|(d, k)| d ^ k).collect();
            let mut copy = vec![0; len + 1];
            mask_copy(&mut copy, &data, KEY);
            assert_eq!(copy[..len], expected);
            let mut back = BytesMut::new();
            put_unmasked(&mut back, &expected, KEY);
            assert_eq!(back, data);
        }
    }
}
