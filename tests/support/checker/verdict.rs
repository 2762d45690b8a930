//! What was checked and what was found.

use std::fmt;

/// Violations of one invariant that are kept with their evidence; the rest is counted.
const SHOWN: usize = 5;

/// The invariants of the design.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invariant {
    I1,
    I2,
    I3,
    I4,
    I5,
    I6,
    I7,
    I8,
}

impl Invariant {
    pub const ALL: [Self; 8] =
        [Self::I1, Self::I2, Self::I3, Self::I4, Self::I5, Self::I6, Self::I7, Self::I8];

    fn words(self) -> &'static str {
        match self {
            Self::I1 => "an epoch is held once and only grows",
            Self::I2 => "a turn is dispatched at most once, or by the rule",
            Self::I3 => "one terminal event for each turn, its own",
            Self::I4 => "one owner at a time, also in what clients see",
            Self::I5 => "a clean drain leaves no outcome unknown",
            Self::I6 => "no acknowledged turn is lost",
            Self::I7 => "no gap and no duplicate, or said",
            Self::I8 => "at most two hops",
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Finding {
    checked: usize,
    violations: usize,
    evidence: Vec<String>,
}

/// The judgement of one history. Prints as a table.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    findings: [Finding; 8],
    /// What is no violation, but worth to be known.
    notes: Vec<(&'static str, usize)>,
}

impl Verdict {
    /// Counts a fact that was checked; `evidence` tells why it is a violation, if it is one.
    pub fn check(&mut self, of: Invariant, holds: bool, evidence: impl FnOnce() -> String) {
        let finding = &mut self.findings[of as usize];
        finding.checked += 1;
        if !holds {
            finding.violations += 1;
            if finding.evidence.len() < SHOWN {
                finding.evidence.push(evidence());
            }
        }
    }

    /// Counts something.
    pub fn note(&mut self, what: &'static str) {
        match self.notes.iter_mut().find(|(known, _)| *known == what) {
            Some((_, count)) => *count += 1,
            None => self.notes.push((what, 1)),
        }
    }

    /// Facts that were checked for an invariant.
    pub fn checked(&self, of: Invariant) -> usize {
        self.findings[of as usize].checked
    }

    /// Violations of an invariant.
    #[allow(dead_code, reason = "for the simulation")]
    pub fn violations(&self, of: Invariant) -> usize {
        self.findings[of as usize].violations
    }

    /// What was counted.
    #[allow(dead_code, reason = "for the simulation")]
    pub fn notes(&self) -> &[(&'static str, usize)] {
        &self.notes
    }

    /// Invariants that do not hold.
    pub fn broken(&self) -> Vec<Invariant> {
        let broken = |of: &Invariant| self.findings[*of as usize].violations > 0;
        Invariant::ALL.into_iter().filter(broken).collect()
    }

    /// # Panics
    /// With the table, if an invariant does not hold.
    pub fn assert_holds(&self) {
        assert!(self.broken().is_empty(), "\n{self}");
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:4} {:>8} {:>10}  invariant", "", "checked", "violations")?;
        for of in Invariant::ALL {
            let Finding { checked, violations, evidence } = &self.findings[of as usize];
            writeln!(f, "{of:?}   {checked:>8} {violations:>10}  {}", of.words())?;
            for line in evidence {
                writeln!(f, "{:14}! {line}", "")?;
            }
        }
        for (what, count) in &self.notes {
            writeln!(f, "{count:>13} {what}")?;
        }
        Ok(())
    }
}
