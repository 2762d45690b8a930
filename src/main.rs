//! The program: reads the command line, runs one command and ends with its status.

use std::process::ExitCode;

use ringspan::cli;

fn main() -> ExitCode {
    cli::run(cli::parse()).into()
}
