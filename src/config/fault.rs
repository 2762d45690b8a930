//! What is wrong with a configuration: every fault at once, one line each.

use std::fmt;

use super::Secret;

/// Longest piece of an offending value that is repeated in a fault, in characters.
const SHOWN: usize = 120;

/// The offending value, as far as it may be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Got {
    /// Nothing was given where something is needed.
    Missing,
    /// Harmless text.
    Text(String),
    /// A credential: that there is one is all that is said.
    Secret(Secret),
}

impl fmt::Display for Got {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("missing"),
            Self::Secret(_) => f.write_str("got a value that is not shown"),
            Self::Text(text) => match text.char_indices().nth(SHOWN) {
                Some((end, _)) => write!(f, "got {:?}…", &text[..end]),
                None => write!(f, "got {text:?}"),
            },
        }
    }
}

/// One thing to correct.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where the value was given: `--lease-ttl`, `RINGSPAN_LEASE_TTL` or `lease_ttl in FILE`.
    pub place: String,
    pub got: Got,
    /// What would be right.
    pub expected: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A fault is one line, whatever a file name or a library's message holds.
        let line = format!("{}: {}, expected {}", self.place, self.got, self.expected);
        f.write_str(&line.replace(['\n', '\r'], " "))
    }
}

/// Everything that is wrong; `Display` writes one line a fault.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// Adds one fault.
    pub fn push(&mut self, place: impl Into<String>, got: Got, expected: impl Into<String>) {
        self.0.push(Fault { place: place.into(), got, expected: expected.into() });
    }

    /// Adds the faults of others.
    pub fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// Whether the configuration may be used.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The faults in the order in which they were found.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.0.iter()
    }

    /// `value`, unless something was wrong.
    pub fn or<T>(self, value: T) -> Result<T, Self> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// What to say of an unknown key: the nearest known one, if it may be a slip of the pen.
#[must_use]
pub fn unknown<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> String {
    let nearest = known
        .map(|name| (distance(key, name), name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 5)
        .min();
    match nearest {
        Some((_, name)) => format!("a known key; did you mean `{name}`?"),
        None => "a known key; `ringspan config schema` lists them".into(),
    }
}

/// Levenshtein distance in bytes.
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_pen_is_recognised_and_nonsense_is_not() {
        let known = ["lease_ttl", "listen"];
        assert!(unknown("leese_ttl", known.into_iter()).contains("`lease_ttl`"));
        assert!(!unknown("colour", known.into_iter()).contains("did you mean"));
    }

    #[test]
    fn a_fault_is_one_short_line_and_never_shows_a_secret() {
        let mut faults = Faults::default();
        faults.push("a", Got::Text("x\n".repeat(1000)), "less");
        faults.push("b", Got::Secret(Secret::new("hunter2")), "more");
        let text = format!("{faults} {faults:?}");
        assert_eq!(faults.to_string().lines().count(), 2);
        assert!(faults.to_string().len() < 500);
        assert!(!text.contains("hunter2"));
    }
}
