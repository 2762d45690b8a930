//! A wall clock that steps while a program runs: libfaketime before its C library. The
//! monotonic and the boot clock stay as they are.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where packages put the library.
const PLACES: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
];

/// The wall clock of whoever runs under its variables.
#[derive(Clone, Debug)]
pub struct Clock {
    file: PathBuf,
    library: &'static str,
}

impl Clock {
    /// One that is right, kept in a file of this name.
    ///
    /// # Panics
    /// Without the library.
    pub fn new(file: &Path) -> Self {
        let found = PLACES.into_iter().find(|place| Path::new(place).is_file());
        let library = found.expect("this test needs libfaketime: `apt-get install libfaketime`");
        let clock = Self { file: file.to_owned(), library };
        clock.step(0);
        clock
    }

    /// From now on it is so many seconds ahead.
    pub fn step(&self, ahead: i64) {
        fs::write(&self.file, format!("{ahead:+}\n")).unwrap();
    }

    /// What makes a program believe in it.
    pub fn variables(&self) -> [(&'static str, String); 5] {
        [
            ("LD_PRELOAD", self.library.to_owned()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.display().to_string()),
            // Processes of one server see the same.
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            // Its shared memory would outlive processes that are killed.
            ("FAKETIME_DISABLE_SHM", "1".to_owned()),
        ]
    }
}
