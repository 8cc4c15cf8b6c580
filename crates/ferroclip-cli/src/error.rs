//! What a failed command says, and with which status the program ends.

use std::fmt::Display;
use std::io;
use std::path::Path;

/// The outcome of a command that did its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    /// Everything worked.
    All,
    /// Some inputs failed; the command has listed them.
    SomeFailed,
}

impl Done {
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Done::All => 0,
            Done::SomeFailed => 3,
        }
    }

    pub(crate) fn with_failures(n_failures: usize) -> Done {
        if n_failures == 0 { Done::All } else { Done::SomeFailed }
    }
}

/// The class of a failure: it decides the exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The command line itself is wrong.
    Usage,
    /// A signal; what can be saved is saved.
    Interrupted,
    /// The reader of our output has gone; nothing is said.
    BrokenPipe,
    /// Everything else, by one word for programs.
    Failed(&'static str),
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Usage => "usage",
            Kind::Interrupted => "interrupted",
            Kind::BrokenPipe => "broken_pipe",
            Kind::Failed(name) => name,
        }
    }
}

/// A failure as it is shown: one line that names the thing, and one that says what to do.
#[derive(Debug, Clone)]
pub(crate) struct Error {
    pub(crate) kind: Kind,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

/// What a command returns.
pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(kind: Kind, message: impl Display) -> Error {
        Error { kind, message: one_line(&message.to_string()), hint: None }
    }

    pub(crate) fn usage(message: impl Display) -> Error {
        Error::new(Kind::Usage, message)
    }

    pub(crate) fn input(message: impl Display) -> Error {
        Error::new(Kind::Failed("input"), message)
    }

    pub(crate) fn interrupted(hint: &str) -> Error {
        Error::new(Kind::Interrupted, "interrupted").hint(hint)
    }

    /// An operation on a file; `what` is a verb such as `read`.
    pub(crate) fn file(what: &str, path: &Path, error: &io::Error) -> Error {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => {
                Some("check the path; relative paths start at the current directory")
            }
            io::ErrorKind::PermissionDenied => Some("check the permissions of the path"),
            io::ErrorKind::IsADirectory => Some("give a file, not a directory"),
            io::ErrorKind::InvalidInput => {
                Some("give a file that lies on a disk; what comes from a pipe can be saved to one")
            }
            io::ErrorKind::AlreadyExists => Some("give a path that does not exist yet"),
            _ => None,
        };
        let room = ferroclip::make_room(error);
        let hint = room
            .map(|hint| format!("{hint}, or write to another disk"))
            .or(hint.map(str::to_owned));
        let message = format!("cannot {what} `{}`: {}", path.display(), reason(error));
        Error::new(Kind::Failed("io"), message).maybe_hint(hint)
    }

    /// Writing to standard output. Only this may be a broken pipe that is nobody's fault.
    pub(crate) fn stdout(error: &io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Error::new(Kind::BrokenPipe, "standard output is closed"),
            _ => Error::file("write", Path::new("standard output"), error),
        }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = Some(one_line(&hint.into()));
        self
    }

    /// Adds to the hint.
    pub(crate) fn and_hint(self, more: &str) -> Error {
        let hint = self.hint.as_ref().map_or(more.to_owned(), |hint| format!("{hint}; {more}"));
        self.hint(hint)
    }

    pub(crate) fn maybe_hint(mut self, hint: Option<String>) -> Error {
        self.hint = hint.map(|hint| one_line(&hint)).or(self.hint);
        self
    }

    pub(crate) fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::BrokenPipe => 0,
            Kind::Usage => 2,
            Kind::Interrupted => 130,
            _ => 1,
        }
    }

    pub(crate) fn to_json(&self) -> serde_json::Value {
        serde_json::json!({"error": {
            "kind": self.kind.name(), "message": self.message, "hint": self.hint,
        }})
    }
}

impl From<ferroclip_data::DataError> for Error {
    fn from(error: ferroclip_data::DataError) -> Error {
        Error::new(Kind::Failed("data"), without_number(&error)).maybe_hint(error.hint())
    }
}

impl From<ferroclip::Error> for Error {
    fn from(error: ferroclip::Error) -> Error {
        match &error {
            ferroclip::Error::Cancelled => Error::interrupted("run the command again"),
            ferroclip::Error::Io { action, path, source } => Error::file(action, path, source),
            _ => Error::new(Kind::Failed(error.kind()), &error).maybe_hint(error.hint()),
        }
    }
}

impl From<ferroclip_train::TrainError> for Error {
    fn from(error: ferroclip_train::TrainError) -> Error {
        use ferroclip_train::TrainError;
        let go_on = error.no_room().and(error.hint());
        match error {
            TrainError::Model(error) => Error::from(error).maybe_hint(go_on),
            TrainError::Io { action, path, source } => {
                Error::file(action, &path, &source).maybe_hint(go_on)
            }
            TrainError::Data(error) => error.into(),
            TrainError::Cancelled => Error::interrupted("run the command again"),
            _ => Error::new(Kind::Failed(error.kind()), without_number(&error))
                .maybe_hint(error.hint()),
        }
    }
}

/// A message without the `(os error 2)` that Rust appends to the system's words.
pub(crate) fn without_number(error: &dyn Display) -> String {
    let text = error.to_string();
    match text.split_once(" (os error ") {
        Some((before, after)) => format!(
            "{before}{}",
            after.trim_start_matches(char::is_numeric).trim_start_matches(')')
        ),
        None => text,
    }
}

/// The operating system's words without the number that Rust appends.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_ascii_lowercase());
    first.into_iter().chain(chars).collect()
}

/// Line breaks and other control characters out of foreign words.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
