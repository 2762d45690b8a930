//! Commands and how they end.

pub mod args;
pub mod config;

use std::process::ExitCode;

pub use args::{Cli, CliCommand};
use clap::Parser;

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Status 0.
    Success,
    /// Status 1: the work could not be done.
    Failure,
    /// Status 64 (`EX_USAGE`): the command line or the configuration is wrong.
    Usage,
}

impl Exit {
    /// The number that the parent process sees.
    #[must_use]
    pub const fn status(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Usage => 64,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.status())
    }
}

/// Reads the command line. Does not return for `--help`, `--version` (status 0) and
/// mistakes (status 64).
#[must_use]
pub fn parse() -> Cli {
    Cli::try_parse().unwrap_or_else(|error| {
        // Nothing is left to tell it to if the terminal is gone.
        let _ = error.print();
        let exit = if error.use_stderr() { Exit::Usage } else { Exit::Success };
        std::process::exit(exit.status().into())
    })
}

#[cfg(test)]
mod tests;
