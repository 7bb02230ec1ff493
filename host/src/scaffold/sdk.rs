//! The source of the crate `inet-guest`, which `wasm-inetd new` copies into a project.

/// Includes a file of `guest/`.
macro_rules! file {
    ($to:literal, $from:literal) => {
        ($to, include_str!(concat!("../../../guest/", $from)))
    };
}

/// The files of the crate and of the crate `background`, by their paths in the copy.
pub(super) const SDK: &[(&str, &str)] = &[
    file!("Cargo.toml", "sdk/Cargo.toml"),
    file!("src/lib.rs", "sdk/src/lib.rs"),
    file!("src/sessions.rs", "sdk/src/sessions.rs"),
    file!("src/streams.rs", "sdk/src/streams.rs"),
    file!("src/streams/bell.rs", "sdk/src/streams/bell.rs"),
    file!("src/streams/lines.rs", "sdk/src/streams/lines.rs"),
    file!("src/time.rs", "sdk/src/time.rs"),
    file!("background/Cargo.toml", "background/Cargo.toml"),
    file!("background/src/lib.rs", "background/src/lib.rs"),
];

/// Lines of the manifests that refer to the workspace, with their replacements.
const INHERITED: &[(&str, &str)] = &[
    (
        "background.workspace = true",
        "background = { path = \"background\" }",
    ),
    ("edition.workspace = true", "edition = \"2024\""),
    (
        "license.workspace = true",
        concat!("license = \"", env!("CARGO_PKG_LICENSE"), "\""),
    ),
    ("publish.workspace = true", "publish = false"),
    (
        "rust-version.workspace = true",
        concat!("rust-version = \"", env!("CARGO_PKG_RUST_VERSION"), "\""),
    ),
    (
        "version.workspace = true",
        concat!("version = \"", env!("CARGO_PKG_VERSION"), "\""),
    ),
    (
        "wit-bindgen.workspace = true",
        "wit-bindgen = { version = \"0.60\", default-features = false, features = [\"macros\", \
         \"realloc\", \"std\", \"async\", \"async-spawn\"] }",
    ),
];

/// Returns the text of a file for a project.
pub(super) fn own(text: &str) -> String {
    let mut own = String::with_capacity(text.len());
    // The lints of the workspace are not for a copy.
    let text = text.replace("\n[lints]\nworkspace = true\n", "");
    for line in text.lines() {
        let replaced = INHERITED.iter().find(|(inherited, _)| *inherited == line);
        own += replaced.map_or(line, |(_, replacement)| replacement);
        own.push('\n');
    }
    own.replace("path: \"../../wit\"", "path: \"../wit\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_has_every_file_of_the_crate_and_needs_no_workspace() {
        let sdk = concat!(env!("CARGO_MANIFEST_DIR"), "/../guest/sdk");
        let mut expected = Vec::new();
        for dir in ["", "src", "src/streams"] {
            for entry in std::fs::read_dir(format!("{sdk}/{dir}")).unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    let path = path.strip_prefix(sdk).unwrap();
                    expected.push(path.to_str().unwrap().trim_start_matches('/').to_owned());
                }
            }
        }
        for file in expected {
            assert!(
                SDK.iter().any(|(copied, _)| *copied == file),
                "{file} is not copied"
            );
        }
        for (file, text) in SDK {
            assert!(!own(text).contains("workspace = true"), "{file}");
        }
    }

    #[test]
    fn the_copy_has_the_dependency_of_the_workspace() {
        let workspace = include_str!("../../../Cargo.toml");
        let line = workspace.lines().find(|line| line.starts_with("wit-bindgen = "));
        assert_eq!(
            own("wit-bindgen.workspace = true"),
            format!("{}\n", line.unwrap())
        );
    }
}
