//! The order of builds, by which placement tells a new pod from an old one.

use std::str::FromStr;

/// A build's version, ordered as semver orders them but lenient in form: a leading `v` is
/// skipped, missing parts count as 0 and so does a part that is no number. `+metadata` is
/// ignored.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Build {
    numbers: [u64; 3],
    stage: Stage,
}

/// A pre-release precedes the release that it leads to (the derived order is the rule).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Pre(Vec<Identifier>),
    Release,
}

/// Numbers precede words, as in semver.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Identifier {
    Number(u64),
    Word(String),
}

impl Build {
    /// Reads any text; what cannot be read is old (`0.0.0`), never an error: a build of
    /// another form must not keep its node out of the ring.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let text = text.trim().trim_start_matches('v');
        let text = text.split_once('+').map_or(text, |(version, _)| version);
        let (version, pre) = match text.split_once('-') {
            Some((version, pre)) => (version, Some(pre)),
            None => (text, None),
        };
        let mut numbers = [0; 3];
        for (number, part) in numbers.iter_mut().zip(version.split('.')) {
            *number = u64::from_str(part).unwrap_or(0);
        }
        let stage = pre.map_or(Stage::Release, |pre| {
            Stage::Pre(pre.split('.').map(Identifier::parse).collect())
        });
        Self { numbers, stage }
    }
}

impl Identifier {
    fn parse(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Word(text.into()), Self::Number)
    }
}

#[cfg(test)]
mod tests {
    use super::Build;

    #[test]
    fn builds_ascend_as_in_semver() {
        let ascending = [
            "unknown-sha",
            "0.9",
            "1.0.0-alpha",
            "1.0.0-alpha.1",
            "1.0.0-alpha.beta",
            "1.0.0-rc.2",
            "1.0.0-rc.10",
            "1.0.0",
            "1.0.1",
            "1.9.0",
            "v1.10",
            "2",
        ];
        for pair in ascending.windows(2) {
            assert!(Build::parse(pair[0]) < Build::parse(pair[1]), "{pair:?}");
        }
    }

    #[test]
    fn missing_parts_and_metadata_do_not_count() {
        assert_eq!(Build::parse("1"), Build::parse("1.0.0"));
        assert_eq!(Build::parse("v1.2"), Build::parse("1.2.0+sha.0123"));
        assert_eq!(Build::parse(""), Build::parse("not a version"));
    }
}
