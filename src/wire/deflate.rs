//! permessage-deflate (RFC 7692), always with both `no_context_takeover`: a session keeps no
//! window, each thread has one compressor and one decompressor that serve all of them.

use std::cell::RefCell;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Messages below this many bytes go plain: the gain is less than the work.
pub const DEFLATE_MIN_BYTES: usize = 64;

/// What a thread keeps between messages at most, in bytes, for each direction.
const KEEP_BYTES: usize = 64 * 1024;

/// How far the output may grow in one step of inflation, in bytes.
const STEP_BYTES: usize = 16 * 1024;

/// The end of a sync flush, which does not travel (RFC 7692 section 7.2.1).
const SYNC_TAIL: [u8; 4] = [0x00, 0x00, 0xFF, 0xFF];

/// The same and an empty final block, so that a truncated message shows.
const END: [u8; 6] = [0x00, 0x00, 0xFF, 0xFF, 0x03, 0x00];

const NAME: &str = "permessage-deflate";
const SERVER_RESET: &str = "server_no_context_takeover";
const CLIENT_RESET: &str = "client_no_context_takeover";
const SERVER_WINDOW: &str = "server_max_window_bits";
const CLIENT_WINDOW: &str = "client_max_window_bits";

const BOTH_RESET: &str =
    "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
const BOTH_RESET_FULL_WINDOW: &str = "permessage-deflate; server_no_context_takeover; \
     client_no_context_takeover; server_max_window_bits=15";

/// Why a message could not be inflated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InflateError {
    TooLarge,
    Corrupt,
}

struct Inflater {
    state: Decompress,
    step: Box<[u8]>,
    out: Vec<u8>,
}

struct Deflater {
    state: Compress,
    out: Vec<u8>,
}

thread_local! {
    static INFLATER: RefCell<Inflater> = RefCell::new(Inflater {
        state: Decompress::new(false),
        step: vec![0; STEP_BYTES].into_boxed_slice(),
        out: Vec::new(),
    });
    static DEFLATER: RefCell<Deflater> = RefCell::new(Deflater {
        state: compressor(),
        out: Vec::new(),
    });
}

/// Inflates one message of at most `limit` bytes and shows it to `then`. Never holds more
/// than `limit` and one step.
pub(super) fn inflate<R>(
    message: &[u8],
    limit: usize,
    then: impl FnOnce(&[u8]) -> R,
) -> Result<R, InflateError> {
    INFLATER.with_borrow_mut(|inflater| {
        inflater.out.clear();
        let result = inflater.run(message, limit).map(|()| then(&inflater.out));
        inflater.out.clear();
        inflater.out.shrink_to(KEEP_BYTES);
        result
    })
}

impl Inflater {
    fn run(&mut self, message: &[u8], limit: usize) -> Result<(), InflateError> {
        self.state.reset(false);
        // No compressor makes one, but the decompressors of other peers accept it.
        if message.is_empty() {
            return Ok(());
        }
        let (mut input, mut at_end) = (message, false);
        loop {
            let (read, written) = (self.state.total_in(), self.state.total_out());
            let status = self
                .state
                .decompress(input, &mut self.step, FlushDecompress::Sync)
                .map_err(|_| InflateError::Corrupt)?;
            let read = usize_of(self.state.total_in() - read);
            let written = usize_of(self.state.total_out() - written);
            input = &input[read..];
            if written > limit - self.out.len() {
                return Err(InflateError::TooLarge);
            }
            self.out.extend_from_slice(&self.step[..written]);
            if status == Status::StreamEnd {
                if input.is_empty() {
                    return Ok(());
                }
                if at_end {
                    return Err(InflateError::Corrupt);
                }
                // A final block in mid-message (RFC 7692 section 7.2.3.4).
                self.state.reset(false);
            } else if written < self.step.len() {
                // All that this input gives has been given.
                if at_end || !input.is_empty() {
                    return Err(InflateError::Corrupt);
                }
                (input, at_end) = (&END, true);
            }
        }
    }
}

/// Deflates one message and shows it to `then`: None if that does not make it smaller.
pub(super) fn deflate<R>(message: &[u8], then: impl FnOnce(Option<&[u8]>) -> R) -> R {
    if message.len() < DEFLATE_MIN_BYTES {
        return then(None);
    }
    DEFLATER.with_borrow_mut(|deflater| {
        deflater.out.clear();
        let smaller = deflater.run(message);
        let result = then(smaller.then_some(&deflater.out));
        deflater.out.clear();
        deflater.out.shrink_to(KEEP_BYTES);
        result
    })
}

impl Deflater {
    /// False if the output would not be smaller.
    fn run(&mut self, message: &[u8]) -> bool {
        self.state.reset();
        // Room for the worst case: zlib-rs 0.6 keeps what found no room over its reset, where it
        // adds up until the compressor panics (`noise_does_not_wear_the_compressor_out`).
        self.out.reserve(deflate_bound(message.len()));
        let done = self.state.compress_vec(message, &mut self.out, FlushCompress::Sync);
        // Room to spare says that the flush is complete.
        let whole = done.is_ok()
            && usize_of(self.state.total_in()) == message.len()
            && self.out.len() < self.out.capacity();
        if !whole {
            self.state = compressor();
            return false;
        }
        let Some(payload) = self.out.strip_suffix(&SYNC_TAIL).map(<[u8]>::len) else {
            return false;
        };
        self.out.truncate(payload);
        payload < message.len()
    }
}

/// Level 1: a hop's time counts for more than the last bytes.
fn compressor() -> Compress {
    Compress::new(Compression::fast(), false)
}

/// More bytes than any message of `len` bytes deflates to at level 1: nine bits for each byte
/// (RFC 1951 section 3.2.6), headers and the flush.
fn deflate_bound(len: usize) -> usize {
    len + len / 8 + 64
}

/// For counts that fit, being lengths of slices.
fn usize_of(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// A server's answer to the values of `Sec-WebSocket-Extensions`: that for the first offer
/// it can meet, or None to go without compression.
#[must_use]
pub fn server_accept<'a>(offers: impl Iterator<Item = &'a str>) -> Option<&'static str> {
    offers.flat_map(elements).find_map(|offer| {
        let mut seen = Seen::default();
        let mut answer = BOTH_RESET;
        for (name, value) in parameters(offer)? {
            match (seen.first(name)?, value) {
                (SERVER_RESET | CLIENT_RESET | CLIENT_WINDOW, None) => {}
                (CLIENT_WINDOW, Some(bits)) => drop(window_bits(bits)?),
                // The thread's compressor has the full window: a smaller one is declined.
                (SERVER_WINDOW, Some(bits)) if window_bits(bits)? == 15 => {
                    answer = BOTH_RESET_FULL_WINDOW;
                }
                _ => return None,
            }
        }
        Some(answer)
    })
}

/// What a client of ours puts into `Sec-WebSocket-Extensions`.
#[must_use]
pub const fn client_offer() -> &'static str {
    BOTH_RESET
}

/// Reads the server's answer to [`client_offer`]: whether compression is on. An error if the
/// server chose what was not offered, which must fail the handshake (RFC 7692 section 5).
pub fn client_accepts<'a>(answer: impl Iterator<Item = &'a str>) -> Result<bool, &'static str> {
    const NOT_OFFERED: &str = "the server chose an extension that was not offered";
    let mut answers = answer.flat_map(elements);
    let Some(chosen) = answers.next() else { return Ok(false) };
    if answers.next().is_some() {
        return Err(NOT_OFFERED);
    }
    let (mut seen, mut reset) = (Seen::default(), false);
    for (name, value) in parameters(chosen).ok_or(NOT_OFFERED)? {
        match (seen.first(name).ok_or(NOT_OFFERED)?, value) {
            (SERVER_RESET, None) => reset = true,
            (CLIENT_RESET, None) => {}
            (SERVER_WINDOW, Some(bits)) if window_bits(bits).is_some() => {}
            _ => return Err(NOT_OFFERED),
        }
    }
    // Without it the server's messages refer to each other, and no window is kept here.
    if reset { Ok(true) } else { Err("the server insists on context takeover") }
}

/// The known parameters that an offer has named: none may come twice.
#[derive(Default)]
struct Seen(Vec<&'static str>);

impl Seen {
    /// None for an unknown or repeated name.
    fn first(&mut self, name: &str) -> Option<&'static str> {
        let known = [SERVER_RESET, CLIENT_RESET, SERVER_WINDOW, CLIENT_WINDOW]
            .into_iter()
            .find(|known| known.eq_ignore_ascii_case(name))?;
        if self.0.contains(&known) {
            return None;
        }
        self.0.push(known);
        Some(known)
    }
}

/// Elements of a header's list. No value of ours may hold a comma, so quotes do not matter.
fn elements(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|element| !element.is_empty())
}

/// Name and value of each parameter, None if the extension is another.
fn parameters(element: &str) -> Option<impl Iterator<Item = (&str, Option<&str>)>> {
    let mut parts = element.split(';').map(str::trim);
    parts.next().filter(|name| name.eq_ignore_ascii_case(NAME))?;
    Some(parts.map(|part| match part.split_once('=') {
        Some((name, value)) => (name.trim_end(), Some(value.trim_start().trim_matches('"'))),
        None => (part, None),
    }))
}

/// 8 to 15, without leading zeros.
fn window_bits(value: &str) -> Option<u8> {
    let bits = value.parse().ok().filter(|bits| (8..=15).contains(bits))?;
    (!value.starts_with(['0', '+'])).then_some(bits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn inflated(message: &[u8], limit: usize) -> Result<Vec<u8>, InflateError> {
        inflate(message, limit, <[u8]>::to_vec)
    }

    #[test]
    fn the_examples_of_the_rfc_inflate() {
        let plain = [0xF2, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00];
        let stored = [0x00, 0x05, 0x00, 0xFA, 0xFF, 0x48, 0x65, 0x6C, 0x6C, 0x6F, 0x00];
        let last_block = [0xF3, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00, 0x00];
        let two_blocks = [0xF2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xFF, 0xFF, 0xCA, 0xC9, 0xC9, 7, 0];
        for message in [&plain[..], &stored, &last_block, &two_blocks] {
            assert_eq!(inflated(message, 5), Ok(b"Hello".to_vec()));
            assert_eq!(inflated(message, 4), Err(InflateError::TooLarge));
        }
        assert_eq!(inflated(&[0], 0), Ok(vec![]));
    }

    #[test]
    fn a_truncated_or_mangled_message_is_corrupt() {
        let text = "a message of some length, ".repeat(20);
        let whole = deflate(text.as_bytes(), |out| out.map(<[u8]>::to_vec)).unwrap();
        for len in 1..whole.len() - 1 {
            assert_ne!(inflated(&whole[..len], 1 << 20), Ok(text.clone().into_bytes()), "{len}");
        }
        assert_eq!(inflated(&whole[..whole.len() / 2], 1 << 20), Err(InflateError::Corrupt));
        assert_eq!(inflated(&[0xFF; 32], 1 << 20), Err(InflateError::Corrupt));
    }

    #[test]
    fn a_bomb_is_refused_at_the_limit_without_being_held() {
        let bomb = deflate(&vec![0; 64 << 20], |out| out.unwrap().to_vec());
        assert!(bomb.len() < 1 << 20, "{}", bomb.len());
        assert_eq!(inflated(&bomb, 100_000), Err(InflateError::TooLarge));
        INFLATER.with_borrow(|inflater| assert!(inflater.out.capacity() <= KEEP_BYTES));
    }

    #[test]
    fn what_does_not_shrink_goes_plain() {
        assert!(deflate(&[b'a'; 63], |out| out.is_none()));
        assert!(deflate(&[b'a'; 64], |out| out.is_some()));
        let noise: Vec<u8> =
            (0..4096_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[1]).collect();
        let sent = deflate(&noise, |out| out.map_or(noise.len(), <[u8]>::len));
        assert!(sent <= noise.len());
    }

    /// What a pseudorandom generator makes of a seed.
    fn noise(seed: u64, len: usize) -> Vec<u8> {
        use rand::{RngCore, SeedableRng};
        let mut noise = vec![0; len];
        rand::rngs::StdRng::seed_from_u64(seed).fill_bytes(&mut noise);
        noise
    }

    #[test]
    fn noise_does_not_wear_the_compressor_out() {
        for seed in 0..2_000 {
            // Of one size, so that no message finds room that a larger one needed.
            assert!(deflate(&noise(seed, 256), |out| out.is_none()), "seed {seed}");
        }
        assert!(deflate(&noise(1, 1 << 20), |out| out.is_none()));
        let text = "text that shrinks ".repeat(10);
        let sent = deflate(text.as_bytes(), |out| out.unwrap().to_vec());
        assert_eq!(inflated(&sent, text.len()), Ok(text.into_bytes()));
    }

    proptest! {
        #[test]
        fn what_is_deflated_inflates_to_itself(
            words in prop::collection::vec(0_u8..20, 64..9000),
        ) {
            // Repeated, so that there is something to gain.
            let words = words.repeat(3);
            let sent = deflate(&words, |out| out.unwrap().to_vec());
            prop_assert!(sent.len() < words.len());
            prop_assert!(inflated(&sent, words.len()) == Ok(words));
        }

        #[test]
        fn no_input_inflates_beyond_the_limit(noise in prop::collection::vec(any::<u8>(), 0..512)) {
            if let Ok(out) = inflated(&noise, 256) {
                prop_assert!(out.len() <= 256);
            }
        }
    }

    #[test]
    fn a_server_takes_the_first_offer_it_can_meet() {
        let accept = |offer: &str| server_accept([offer].into_iter());
        assert_eq!(accept("permessage-deflate"), Some(BOTH_RESET));
        assert_eq!(accept("permessage-deflate; client_max_window_bits"), Some(BOTH_RESET));
        assert_eq!(accept("Permessage-Deflate;client_max_window_bits=\"10\""), Some(BOTH_RESET));
        assert_eq!(accept("permessage-deflate; server_max_window_bits=10"), None);
        assert_eq!(
            accept("permessage-deflate; server_max_window_bits=15"),
            Some(BOTH_RESET_FULL_WINDOW)
        );
        assert_eq!(
            accept("x-other, permessage-deflate; server_max_window_bits=9, permessage-deflate"),
            Some(BOTH_RESET)
        );
        for bad in [
            "",
            "x-webkit-deflate-frame",
            "permessage-deflate; unknown",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; client_max_window_bits=16",
            "permessage-deflate; client_max_window_bits=08",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; client_max_window_bits; client_max_window_bits",
        ] {
            assert_eq!(accept(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_client_accepts_only_what_it_offered() {
        let accepts = |answer: &'static str| client_accepts([answer].into_iter());
        assert_eq!(client_accepts([].into_iter()), Ok(false));
        assert_eq!(accepts(BOTH_RESET), Ok(true));
        assert_eq!(accepts("permessage-deflate; server_no_context_takeover"), Ok(true));
        assert_eq!(
            accepts("permessage-deflate; server_no_context_takeover; server_max_window_bits=10"),
            Ok(true)
        );
        for bad in [
            "permessage-deflate",
            "x-other",
            "permessage-deflate; server_no_context_takeover; client_max_window_bits=15",
            "permessage-deflate; server_no_context_takeover, permessage-deflate",
        ] {
            assert!(accepts(bad).is_err(), "{bad}");
        }
    }
}
