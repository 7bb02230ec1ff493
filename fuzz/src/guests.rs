//! The guests of the workspace, built.

use std::path::PathBuf;
use std::sync::LazyLock;

use host::sandbox::{Content, Origin};

static GUESTS: LazyLock<Vec<PathBuf>> = LazyLock::new(|| {
    let here = std::env::current_exe().unwrap();
    let target_dir = guest_builder::target_dir(&here).unwrap();
    guest_builder::build_all(guest_builder::workspace(), &target_dir).unwrap()
});

/// Reads the guest called `name`.
pub(crate) fn read(name: &str) -> Content {
    let file = format!("{name}.wasm");
    let path = GUESTS.iter().find(|path| path.ends_with(&file)).unwrap();
    Origin::File(path.clone()).read().unwrap()
}
