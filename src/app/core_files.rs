//! What a crash leaves on the disk: nothing.

/// Has the kernel write no core file of this process, and none of those that it starts: it would
/// hold credentials, keys and conversations. The limit cannot be raised again.
pub(super) fn forbid() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Resource, Rlimit, setrlimit};

        let none = Rlimit { current: Some(0), maximum: Some(0) };
        if let Err(error) = setrlimit(Resource::Core, none) {
            tracing::warn!(%error, "a crash of this process may leave a core file behind");
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use rustix::process::{Resource, getrlimit};

    #[test]
    fn a_process_that_crashes_leaves_no_core_file() {
        super::forbid();
        let limit = getrlimit(Resource::Core);
        assert_eq!((limit.current, limit.maximum), (Some(0), Some(0)));
    }
}
