//! The text of an answer, and how it is cut into deltas.

use super::conversation::{Conversation, head};

/// Bytes of a delta unless a directive says otherwise.
const DELTA_BYTES: usize = 40;
/// Bytes of the last user text or tool output that an answer quotes.
const QUOTE_BYTES: usize = 200;
/// Largest answer, bytes.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// The text that proves what was seen.
pub(super) fn reply(conversation: &Conversation) -> String {
    let (turn, digest) = (conversation.users, conversation.digest());
    let (who, quote) = match &conversation.tool_line {
        Some(line) => ("the tool", line),
        None => ("you", &conversation.last_user),
    };
    let quote = head(quote, QUOTE_BYTES);
    format!("turn {turn} of conversation {digest}: {who} said \"{quote}\"")
}

/// Cuts `text` as asked: it is padded where it is too short for so many deltas, and the
/// deltas are longer where it is too long.
pub(super) fn cut(text: &str, deltas: Option<usize>, bytes: Option<usize>) -> Vec<String> {
    let size = bytes.unwrap_or(match deltas {
        Some(_) => 1,
        None => DELTA_BYTES,
    });
    let Some(deltas) = deltas else {
        let mut rest = text;
        return std::iter::from_fn(|| take(&mut rest, size)).collect();
    };
    let wanted = (deltas * size.max(text.len().div_ceil(deltas))).min(MAX_ANSWER_BYTES);
    let padded = format!("{text}{}", ".".repeat(wanted.saturating_sub(text.len())));
    let mut rest = padded.as_str();
    (0..deltas)
        .filter_map(|n| {
            let left = deltas - n;
            let size = if left == 1 { usize::MAX } else { rest.len().div_ceil(left) };
            take(&mut rest, size)
        })
        .collect()
}

/// Takes about `size` bytes and at least one character; None at the end.
fn take(rest: &mut &str, size: usize) -> Option<String> {
    let first = rest.chars().next()?.len_utf8();
    let (piece, left) = rest.split_at(rest.floor_char_boundary(size).max(first));
    *rest = left;
    Some(piece.to_owned())
}
