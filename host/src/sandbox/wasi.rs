//! The packages of WASI that the host provides, by their versions.

use super::diagnostics::LOGGING;
use super::load_error::Refusal;

/// A release of WASI whose interfaces the host provides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Release {
    /// WASI 0.2.
    Two,
    /// WASI 0.3.
    Three,
}

impl Release {
    /// The release that a version belongs to; `None` for a release candidate, and for any other
    /// release.
    fn of_version(version: &str) -> Option<Self> {
        let (release, patch) = [("0.2.", Self::Two), ("0.3.", Self::Three)]
            .into_iter()
            .find_map(|(prefix, release)| Some((release, version.strip_prefix(prefix)?)))?;
        let released = !patch.is_empty() && patch.bytes().all(|byte| byte.is_ascii_digit());
        released.then_some(release)
    }

    /// The release of an interface of WASI, such as `wasi:cli/run@0.2.6`.
    pub(super) fn of_interface(name: &str) -> Option<Self> {
        let (_, version) = name.strip_prefix("wasi:")?.split_once('@')?;
        Self::of_version(version)
    }
}

/// The packages that the host provides in the versions of a [`Release`].
const PACKAGES: [&str; 6] = ["cli", "clocks", "filesystem", "io", "random", "sockets"];

/// Explains why the host does not provide an import, if the import belongs to WASI.
pub(super) fn not_provided(import: &str) -> Option<Refusal> {
    let (package, _) = import.strip_prefix("wasi:")?.split_once('/')?;
    if package == "http" {
        Some(Refusal::Http(import.to_owned()))
    } else if import.starts_with("wasi:logging/logging@") && !LOGGING.contains(&import) {
        Some(Refusal::OtherLogging {
            found: import.to_owned(),
            expected: LOGGING.join("` and `"),
        })
    } else if PACKAGES.contains(&package) && Release::of_interface(import).is_none() {
        Some(Refusal::OtherWasi {
            does: "imports",
            found: import.to_owned(),
        })
    } else {
        None
    }
}

/// Names the WIT that the host has for an import, such as `wasi:cli/exit@0.2.6`.
pub(super) fn wit_of(import: &str) -> String {
    match (import.split_once('/'), import.split_once('@')) {
        (Some(("inet:service", _)), _) => "the `wit/` of this host".to_owned(),
        (Some((package, _)), Some((_, version))) => format!("the published WIT of `{package}@{version}`"),
        _ => "the published WIT of the interface".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_released_versions_count() {
        for (name, release) in [
            ("wasi:cli/run@0.2.0", Some(Release::Two)),
            ("wasi:cli/run@0.2.12", Some(Release::Two)),
            ("wasi:cli/run@0.3.0", Some(Release::Three)),
            ("wasi:cli/run@0.3.0-rc-2026-01-06", None),
            ("wasi:cli/run@0.2.", None),
            ("wasi:cli/run@0.20.0", None),
            ("wasi:cli/run@0.4.0", None),
            ("wasi:cli/run@1.0.0", None),
            ("wasi:cli/run", None),
            ("inet:service/handler@0.2.0", None),
        ] {
            assert_eq!(Release::of_interface(name), release, "{name}");
        }
    }

    #[test]
    fn each_import_that_is_not_provided_has_its_reason() {
        for (import, reason) in [
            (
                "wasi:clocks/monotonic-clock@0.3.0-rc-2026-01-06",
                Some("WASI 0.2 and 0.3"),
            ),
            ("wasi:cli/environment@0.4.0", Some("WASI 0.2 and 0.3")),
            ("wasi:http/types@0.2.6", Some("HTTP")),
            (
                "wasi:logging/logging@0.1.0",
                Some("`wasi:logging/logging@0.1.0-draft`"),
            ),
            ("wasi:logging/logging@0.1.0-draft", None),
            ("wasi:clocks/monotonic-clock@0.2.6", None),
            ("wasi:keyvalue/store@0.2.0-draft", None),
            ("acme:cache/store", None),
        ] {
            let refusal = not_provided(import).map(|refusal| refusal.to_string());
            match reason {
                Some(reason) => assert!(
                    refusal
                        .as_ref()
                        .is_some_and(|text| text.contains(reason) && text.contains(import)),
                    "{import}: {refusal:?}"
                ),
                None => assert_eq!(refusal, None, "{import}"),
            }
        }
    }
}
