//! What the host does with a component before it is compiled, done once for its bounds.
//!
//! Measuring a component, composing it and choosing its engine read a file that nobody has
//! validated yet. Some files make each of these take time, memory or stack without end. A process
//! that is bounded therefore does the same first, and the host reads only what that process has
//! finished.

use std::hint::black_box;

use serde::{Deserialize, Serialize};

use super::compose::compose;
use super::content::Content;
use super::extent::{Extent, check_nested, code_size};
use super::hollow::hollow;
use super::needs::Needs;
use super::outline::component_item;
use super::preinit::instrument;

/// What the host is about to do with a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Examination {
    /// It is initialised at its load.
    pub(super) preinit: bool,
    /// It is validated with all of its code, and compiled without.
    pub(super) validate: bool,
}

/// Does what the host is about to do with `content`, for nothing. Stops where the host refuses it.
pub(super) fn examine(content: &Content, examination: Examination) {
    let parts = content.parts();
    if parts.iter().any(|part| check_nested(part.bytes()).is_err()) {
        return;
    }
    if examination.validate && content.validate().is_err() {
        return;
    }
    for part in parts {
        black_box(component_item(part.bytes()));
    }
    let service = parts.last().unwrap_or(content);
    if examination.preinit {
        match instrument(service.bytes()) {
            Ok(instrumented) => measure(&instrumented, examination),
            Err(_) => return,
        }
    }
    if parts.len() == 1 {
        measure(service.bytes(), examination);
    } else if let Ok(whole) = compose(content, service) {
        measure(whole.bytes(), examination);
    }
}

fn measure(bytes: &[u8], examination: Examination) {
    let extent = Extent::of(bytes);
    black_box(Needs::of(bytes, &extent));
    black_box(code_size(bytes));
    if examination.validate {
        black_box(hollow(bytes));
    }
}
