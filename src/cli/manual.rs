//! `ringspan completions` and `ringspan man`: the command line, told to shells and readers.

use std::{fs, io::Write};

use anyhow::Context as _;
use clap::CommandFactory;

use super::{
    Exit,
    args::{Cli, CompletionsArgs, ManArgs},
};

/// Prints the completion script of a shell.
pub(super) fn completions(args: &CompletionsArgs, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "ringspan", &mut script);
    out.write_all(&script)?;
    Ok(Exit::Success)
}

/// Prints the manual page of the program, or writes one for each command into a directory.
pub(super) fn man(args: &ManArgs, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let command = Cli::command();
    let Some(dir) = &args.out else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        out.write_all(&page)?;
        return Ok(Exit::Success);
    };
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    // `ringspan.1`, `ringspan-config-check.1` and so on.
    clap_mangen::generate_to(command, dir).with_context(|| format!("writing {}", dir.display()))?;
    writeln!(out, "manual pages are in {}", dir.display())?;
    Ok(Exit::Success)
}

#[cfg(test)]
mod tests {
    use clap_complete::Shell;

    use super::*;

    #[test]
    fn every_shell_completes_commands_and_flags() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            completions(&CompletionsArgs { shell }, &mut script).unwrap();
            let script = String::from_utf8(script).unwrap();
            for word in ["selfcheck", "sample-upstream", "admin-url", "drain-dwell"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
    }

    #[test]
    fn every_command_has_a_page_that_names_its_flags() {
        let dir = tempfile::tempdir().unwrap();
        let args = ManArgs { out: Some(dir.path().join("man")) };
        man(&args, &mut Vec::new()).unwrap();
        let page = |name: &str| fs::read_to_string(dir.path().join("man").join(name)).unwrap();
        assert!(page("ringspan.1").contains("selfcheck"));
        assert!(page("ringspan-drain.1").contains("admin\\-url"));
        assert!(page("ringspan-config-check.1").contains("FILE"));
    }
}
