//! What a user message asks of the sample: `[name]` and `[name=value]` anywhere in its text.

use std::time::Duration;

/// Most deltas of one answer.
const MAX_DELTAS: usize = 1_000_000;
/// Most bytes of one delta.
const MAX_DELTA_BYTES: usize = 1 << 20;
/// Longest pause between two deltas.
const MAX_DELAY: Duration = Duration::from_mins(10);

/// How the deltas of an answer are cut and timed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pace {
    pub(super) deltas: Option<usize>,
    /// Bytes of each delta.
    pub(super) bytes: Option<usize>,
    /// Pause before each delta.
    pub(super) delay: Duration,
}

/// How a connection is ended in mid-turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// With this close code.
    Close(u16),
    /// Without a word.
    Drop,
    Reset,
}

/// What happens instead of, or around, an ordinary answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Misbehaviour {
    Incomplete,
    Hang,
    /// HTTP status before anything was created.
    Fail(u16),
    /// Code of a `response.failed`.
    Error(String),
    /// The connection ends after so many deltas; None: before any event.
    Cut {
        how: Cut,
        after: Option<usize>,
    },
    Lie {
        foreign: bool,
        duplicate: bool,
    },
}

/// A tool to call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ToolCall {
    pub(super) name: String,
    pub(super) argument: String,
}

/// All directives of one text. What is not understood is ignored: it is a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Directives {
    pub(super) pace: Pace,
    pub(super) tool: Option<ToolCall>,
    pub(super) misbehaviour: Option<Misbehaviour>,
    pub(super) once: bool,
}

impl Directives {
    pub(super) fn parse(text: &str) -> Self {
        let mut found = Self::default();
        let mut cut_after = Some(0);
        for directive in text.split('[').skip(1).filter_map(|rest| rest.split_once(']')) {
            let (name, value) = directive.0.split_once('=').unwrap_or((directive.0, ""));
            match name {
                "deltas" => found.pace.deltas = number(value).map(|n| n.clamp(1, MAX_DELTAS)),
                "bytes" => found.pace.bytes = number(value).map(|n| n.clamp(1, MAX_DELTA_BYTES)),
                "delay" => found.pace.delay = duration(value).unwrap_or_default().min(MAX_DELAY),
                "tool" => {
                    let (name, argument) = value.split_once(':').unwrap_or((value, ""));
                    let (name, argument) = (name.to_owned(), argument.to_owned());
                    found.tool = Some(ToolCall { name, argument });
                }
                "once" => found.once = true,
                "close_after" => cut_after = number(value).or(Some(0)),
                "close_first" => cut_after = None,
                _ => found.misbehaviour = misbehaviour(name, value).or(found.misbehaviour),
            }
        }
        if let Some(Misbehaviour::Cut { after, .. }) = &mut found.misbehaviour {
            *after = cut_after;
        }
        found
    }
}

fn misbehaviour(name: &str, value: &str) -> Option<Misbehaviour> {
    match name {
        "incomplete" => Some(Misbehaviour::Incomplete),
        "hang" => Some(Misbehaviour::Hang),
        "fail" => {
            value.parse().ok().filter(|code| (400..600).contains(code)).map(Misbehaviour::Fail)
        }
        "error" if !value.is_empty() => Some(Misbehaviour::Error(value.to_owned())),
        "close" => value.parse().ok().map(|code| match code {
            0 => cut(Cut::Drop),
            code => cut(Cut::Close(code)),
        }),
        "reset" => Some(cut(Cut::Reset)),
        "lie" => Some(Misbehaviour::Lie {
            foreign: matches!(value, "" | "foreign"),
            duplicate: matches!(value, "" | "duplicate"),
        }),
        _ => None,
    }
}

fn cut(how: Cut) -> Misbehaviour {
    Misbehaviour::Cut { how, after: Some(0) }
}

fn number(value: &str) -> Option<usize> {
    value.parse().ok()
}

/// `5ms`, `2s`; a bare number is milliseconds.
fn duration(value: &str) -> Option<Duration> {
    let (digits, millis) = match (value.strip_suffix("ms"), value.strip_suffix('s')) {
        (Some(digits), _) => (digits, 1),
        (None, Some(digits)) => (digits, 1000),
        (None, None) => (value, 1),
    };
    digits.parse::<u64>().ok()?.checked_mul(millis).map(Duration::from_millis)
}
