//! Names of settings in messages.

use std::fmt;
use std::sync::OnceLock;

/// Returns the name of a setting, such as `--max-memory`, by its key in a services file, such as
/// `limits.max-memory`.
pub type Names = fn(&str) -> String;

/// How the flags of this process are named; empty if its settings come from a services file.
static FLAGS: OnceLock<Names> = OnceLock::new();

/// Has messages name settings as flags, by `names`. Without this, they name keys.
///
/// A process takes its settings either from flags or from a services file. Call this once, before
/// anything is loaded; later calls have no effect.
pub fn name_settings_as_flags(names: Names) {
    let _ = FLAGS.set(names);
}

/// A setting as messages name it: as a flag, or as a key of the services file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting<'a> {
    key: &'a str,
    value: Option<&'a str>,
}

impl<'a> Setting<'a> {
    /// The setting with this key, such as `limits.max-memory`. Keys of a service have no prefix.
    pub const fn of(key: &'a str) -> Self {
        Self { key, value: None }
    }

    /// The setting with this key, set to the text `value`.
    pub const fn to(key: &'a str, value: &'a str) -> Self {
        let value = Some(value);
        Self { key, value }
    }

    fn write(self, names: Option<Names>, f: &mut impl fmt::Write) -> fmt::Result {
        let Self { key, value } = self;
        match (names.map(|names| names(key)), value) {
            (Some(flag), None) => write!(f, "`{flag}`"),
            (Some(flag), Some(value)) => write!(f, "`{flag} {value}`"),
            (None, None) => write!(f, "`{key}`"),
            (None, Some(value)) => write!(f, "`{key} = \"{value}\"`"),
        }
    }
}

impl fmt::Display for Setting<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(FLAGS.get().copied(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::flag_of;

    #[test]
    fn a_setting_is_named_by_its_source() {
        for (setting, key, flag) in [
            (
                Setting::of("limits.max-memory"),
                "`limits.max-memory`",
                "`--max-memory`",
            ),
            (Setting::of("cache"), "`cache`", "`--cache`"),
            (
                Setting::to("isolation", "service"),
                "`isolation = \"service\"`",
                "`--isolation service`",
            ),
        ] {
            let named = |names| {
                let mut text = String::new();
                setting.write(names, &mut text).unwrap();
                text
            };
            assert_eq!(named(None), key);
            assert_eq!(named(Some(flag_of)), flag);
        }
    }
}
