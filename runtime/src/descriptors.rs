//! How many files and sockets the process may have open.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limit before and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Raised {
    /// What the process was started with. `None`: no limit.
    pub before: Option<u64>,
    /// What it has now. `None`: no limit.
    pub after: Option<u64>,
}

/// Raises the limit of open descriptors to what the system allows this process.
///
/// The usual soft limit of 1,024 is there for programs that use `select`; a proxy that runs into it refuses its clients.
pub fn raise_limit() -> io::Result<Raised> {
    let limit = getrlimit(Resource::Nofile);
    let before = limit.current;
    if before != limit.maximum {
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: limit.maximum,
                maximum: limit.maximum,
            },
        )?;
    }
    Ok(Raised {
        before,
        after: getrlimit(Resource::Nofile).current,
    })
}

/// How many there may be now. `None`: no limit.
pub fn limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let hard = getrlimit(Resource::Nofile).maximum;
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(256),
                maximum: hard,
            },
        )
        .unwrap();
        let raised = raise_limit().unwrap();
        assert_eq!(raised.before, Some(256));
        assert_eq!(raised.after, hard);
        assert_eq!(raise_limit().unwrap().before, hard);
        assert_eq!(limit(), hard);
    }
}
