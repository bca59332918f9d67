//! Why a command ends without having done what it was asked: one sentence for people, one exit code for programs.

use backstay_engine::{EngineError, NodeError, StoreError};

/// What went wrong.
#[derive(Debug)]
pub(crate) struct Trouble {
    /// The exit code.
    pub code: u8,
    /// What happened and what to do.
    pub text: String,
}

/// The exit codes, as the help lists them.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0    it was done
  1    it was tried and failed
  2    the command line or the configuration is wrong
  3    what was named is not there
  4    somebody else holds it, or it is in another state
  5    the database, or the server, cannot be reached
  6    the server, or the database, refused: the token is missing, not valid, or may not do this
  7    the run that was waited for came to another end
  8    the run that was waited for waits for people
  130  stopped by Ctrl-C before it was done (143: by SIGTERM)";

impl Trouble {
    /// It was tried and failed.
    pub(crate) fn failed(text: impl Into<String>) -> Self {
        Self { code: 1, text: text.into() }
    }

    /// It was asked wrongly.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self { code: 2, text: text.into() }
    }

    /// It is not there.
    pub(crate) fn not_found(text: impl Into<String>) -> Self {
        Self { code: 3, text: text.into() }
    }

    /// Somebody else has it.
    pub(crate) fn conflict(text: impl Into<String>) -> Self {
        Self { code: 4, text: text.into() }
    }

    /// The database does not answer.
    pub(crate) fn unreachable(text: impl Into<String>) -> Self {
        Self { code: 5, text: text.into() }
    }

    /// The caller may not.
    pub(crate) fn denied(text: impl Into<String>) -> Self {
        Self { code: 6, text: text.into() }
    }

    /// It was told to stop, and did; that needs no words.
    pub(crate) fn interrupted(code: u8) -> Self {
        Self { code, text: String::new() }
    }

    /// For `map_err` around files.
    pub(crate) fn file(what: &str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let text = format!("{what} {} failed", path.display());
        move |error| Self::failed(format!("{text}: {error}."))
    }
}

/// An error with its causes, as one sentence.
pub(crate) fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Many errors already end with the text of their cause.
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        let text = sentence(&error);
        match &error {
            StoreError::Url(_) => {
                Self::usage(format!("{text}. It looks like postgres://user:password@host:5432/database."))
            }
            _ if error.is_denied() => Self::denied(format!(
                "{text}. This role may not do that: as the database's owner run \"backstay db roles --apply\"."
            )),
            StoreError::Migrate(_) => Self::failed(format!(
                "{text}. If it says that a migration is missing, a newer Backstay has used this database: use that one."
            )),
            _ if error.is_passing() => Self::unreachable(format!(
                "The database does not answer: {text}. Everything that was journaled is kept; start again once it is \
                 reachable."
            )),
            StoreError::Database { doing: "connect to the database", .. } => {
                Self::unreachable(format!("{text}. Check the database URL, the user and the password."))
            }
            _ => Self::failed(format!("{text}.")),
        }
    }
}

impl From<EngineError> for Trouble {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Store(error) => error.into(),
            EngineError::NoSuchRun(_) => Self::not_found(sentence(&error)),
            EngineError::KeyReused { .. } | EngineError::Exclusive { .. } => Self::conflict(sentence(&error)),
            _ => Self::failed(sentence(&error)),
        }
    }
}

impl From<NodeError> for Trouble {
    fn from(error: NodeError) -> Self {
        match error {
            NodeError::Store(error) => error.into(),
            NodeError::NameInUse(_) => Self::conflict(sentence(&error)),
            NodeError::Thread(_) => Self::failed(sentence(&error)),
        }
    }
}

impl From<backstay_postgres::Error> for Trouble {
    fn from(error: backstay_postgres::Error) -> Self {
        let text = error.to_string();
        match error {
            backstay_postgres::Error::InUse { .. } => Self::conflict(text),
            _ => Self::unreachable(text),
        }
    }
}
