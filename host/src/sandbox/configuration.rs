//! The interface `configuration`, by which parts of a component check their grants at each load.

use thiserror::Error;
use wasmtime::Store;
use wasmtime::component::{Instance, TypedFunc};

use super::content::Content;
use super::load_error::{LoadError, Refusal};
use super::mismatch;
use super::state::State;

/// The name of the interface.
pub(super) const INTERFACE: &str = "inet:service/configuration@0.1.0";

/// Characters of a reason that a message shows.
const MAX_REASON: usize = 1024;

/// The name by which a composition exports the interface of one of its parts, without the number of
/// the part.
const PART: &str = "configuration-part";

/// The name by which a composition exports the interface of one of its parts.
pub(super) fn of_part(index: usize) -> String {
    format!("{PART}{index}")
}

/// Whether a component, composed or not, exports the interface by that name.
pub(super) fn is_exported_as(export: &str) -> bool {
    export == INTERFACE || export.starts_with(PART)
}

/// The function by which a part checks its grants.
pub(super) struct Check<'a> {
    /// The number of the part within its content.
    index: usize,
    part: &'a Content,
    function: TypedFunc<(), (Result<(), String>,)>,
}

/// Finds the functions by which the parts of `content` check their grants, in an instance of it.
///
/// # Errors
///
/// A part exports the interface without its function, or with a function of another type.
pub(super) fn checks<'a>(
    content: &'a Content,
    store: &mut Store<State>,
    instance: &Instance,
) -> Result<Vec<Check<'a>>, LoadError> {
    let mut checks = Vec::new();
    let parts = content.parts();
    for (index, part) in parts.iter().enumerate() {
        let name = match parts.len() {
            1 => INTERFACE.to_owned(),
            _ => of_part(index),
        };
        let Some(interface) = instance.get_export_index(&mut *store, None, &name) else {
            continue;
        };
        let Some(function) = instance.get_export_index(&mut *store, Some(&interface), "check") else {
            let reason = format!("`{INTERFACE}` is exported without its function `check`");
            return Err(part.refused(Refusal::Types(reason)));
        };
        let function = instance.get_typed_func(&mut *store, function).map_err(|error| {
            let reason = format!("`check` of `{INTERFACE}`: {}", mismatch::difference(&error));
            part.refused(Refusal::Types(reason))
        })?;
        checks.push(Check {
            index,
            part,
            function,
        });
    }
    Ok(checks)
}

/// The part of this number has trapped in its function `check`.
#[derive(Debug, Error)]
#[error("a part failed while it checked its configuration")]
struct FailedCheck(usize);

/// Returns the refusal of the part of `content` whose check has ended in `error`, for this
/// `reason`; `None` if `error` comes from elsewhere.
pub(super) fn failed_check(content: &Content, error: &wasmtime::Error, reason: &str) -> Option<LoadError> {
    let FailedCheck(index) = error.downcast_ref()?;
    let part = content.parts().get(*index)?;
    Some(part.refused(Refusal::Check(reason.to_owned())))
}

/// Has parts check their grants. Returns the names of the parts.
///
/// # Errors
///
/// The outer error: a check traps, for [`failed_check`]. The inner error: a part rejects its
/// grants.
pub(super) async fn call(
    checks: Vec<Check<'_>>,
    store: &mut Store<State>,
) -> wasmtime::Result<Result<Vec<String>, LoadError>> {
    let mut accepted = Vec::new();
    for Check {
        index,
        part,
        function,
    } in checks
    {
        let answer = function.call_async(&mut *store, ()).await;
        let (answer,) = answer.map_err(|error| error.context(FailedCheck(index)))?;
        if let Err(reason) = answer {
            return Ok(Err(part.refused(Refusal::Configuration(sentence(&reason)))));
        }
        accepted.push(part.name.clone());
    }
    Ok(Ok(accepted))
}

/// The beginning of a guest's reason, in one line.
fn sentence(reason: &str) -> String {
    let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
    reason.chars().take(MAX_REASON).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_stays_in_its_line_and_in_bounds() {
        assert_eq!(sentence("X is `1`:\n\texpected `2`"), "X is `1`: expected `2`");
        assert_eq!(sentence(&"é".repeat(2 * MAX_REASON)).chars().count(), MAX_REASON);
    }
}
