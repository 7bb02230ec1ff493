//! `wasm-inetd new`: creates a project for a guest.
//!
//! The projects are made from the folders of `guest/languages`, which are tested where they are.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use thiserror::Error;

use sdk::SDK;
pub use templates::TEMPLATES;

mod sdk;
mod templates;

/// What every template calls its guest.
const TEMPLATE_NAME: &str = "lines";

/// The path of the contract in a template and in a project.
const WIT_IN_TEMPLATE: &str = "../../../wit";
const WIT: &str = "wit";

/// The path of the crate `inet-guest` in a template and in a project.
const SDK_IN_TEMPLATE: &str = "../../sdk";
const SDK_DIR: &str = "inet-guest";

/// Why a path cannot name a guest. The package of the guest has the same name.
#[derive(Debug, Error)]
pub enum BadName {
    /// It has other characters than a package.
    #[error(
        "this cannot name a guest: the last part of the path must start with a lowercase letter and consist \
         of ASCII letters, digits and `-`"
    )]
    Form,
    /// A package that the project depends on has that name.
    #[error("`{0}` is the name of a crate that guests use; choose another name")]
    Taken(String),
    /// Cargo refuses programs of that name.
    #[error("`{0}` is the name of a directory that cargo builds in; choose another name")]
    Reserved(String),
}

/// The packages that are copied into projects in Rust. Cargo refuses two packages of one name in a
/// workspace.
const TAKEN: [&str; 2] = ["inet-guest", "background"];

/// The directories in which cargo builds. It refuses a program that is named like one of them.
const RESERVED: [&str; 4] = ["build", "deps", "examples", "incremental"];

/// The path of a module in Go, before its name. Without it, a guest named like a package of the
/// standard library would not build.
const GO_PREFIX: &str = "example.com/";

/// The code that a template builds on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// The crate `inet-guest`.
    Crate,
    /// Bindings that a tool generates from the contract.
    Bindings,
    /// Standard input and output.
    Nothing,
}

/// A guest that projects are made from.
#[derive(Debug)]
pub struct Template {
    /// The language that it is written in, as the command line has it.
    pub language: &'static str,
    /// The contract that it serves by, as the log has it.
    pub contract: &'static str,
    /// The code that it builds on.
    pub basis: Basis,
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
        .replace(
            &format!("module {GO_PREFIX}{TEMPLATE_NAME}\n"),
            &format!("module {GO_PREFIX}{name}\n"),
        )
        .replace(
            &format!("path: \"{WIT_IN_TEMPLATE}\""),
            &format!("path: \"{WIT}\""),
        )
        .replace(
            &format!("path = \"{SDK_IN_TEMPLATE}\""),
            &format!("path = \"{SDK_DIR}\""),
        )
    }
}

/// The part of a README about the crate.
const SDK_NOTE: &str = concat!(
    "\n`inet-guest/` is the crate for guests in Rust, as it is in wasm-inetd ",
    env!("CARGO_PKG_VERSION"),
    ".\nThe crate is not on crates.io yet. `wasm-inetd new --bare` creates a project without it.\n"
);

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

/// Returns the template for a language and, if one is named, a contract. With `bare`, it uses the
/// bindings and not the crate `inet-guest`.
///
/// # Errors
///
/// There is no such template. The error names those that exist.
pub fn template(language: &str, contract: Option<&str>, bare: bool) -> anyhow::Result<&'static Template> {
    let of_language = || TEMPLATES.iter().filter(|template| template.language == language);
    let fits = |template: &&Template| contract.is_none_or(|contract| template.contract == contract);
    let mut of_contract = of_language().filter(fits);
    let found = of_contract.clone().next();
    let Some(found) = found else {
        let mut contracts: Vec<&str> = of_language().map(|template| template.contract).collect();
        contracts.dedup();
        bail!(
            "--lang {language} has no template for --contract {}: expected {}",
            contract.unwrap_or("any"),
            contracts.join(" or ")
        );
    };
    if !bare {
        return Ok(found);
    }
    let of_crate = found.basis == Basis::Crate;
    match of_contract.find(|template| of_crate && template.basis == Basis::Bindings) {
        Some(bare) => Ok(bare),
        None => bail!("--bare requires --lang rust with --contract streams or sessions"),
    }
}

/// The name of the guest that `dir` is for.
///
/// # Errors
///
/// It could not be the name of a package or of a program, or belongs to a package that a guest
/// depends on.
pub fn name(dir: &Path) -> Result<&str, BadName> {
    let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let fits = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    if !fits {
        Err(BadName::Form)
    } else if TAKEN.contains(&name) {
        Err(BadName::Taken(name.to_owned()))
    } else if RESERVED.contains(&name) {
        // Templates that build no program could have it, but a name should not depend on that.
        Err(BadName::Reserved(name.to_owned()))
    } else {
        Ok(name)
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
    if template.basis != Basis::Nothing {
        for (file, text) in CONTRACT {
            put(dir, &format!("{WIT}/{file}"), text)?;
        }
    }
    if template.basis == Basis::Crate {
        for (file, text) in SDK {
            put(dir, &format!("{SDK_DIR}/{file}"), &sdk::own(text))?;
        }
    }
    fs::set_permissions(dir.join("build.sh"), fs::Permissions::from_mode(0o755))?;
    put(dir, ".gitignore", "/target\n*.wasm\n")?;
    let mut readme = format!("# {name}\n\n```console\n{next}```\n");
    if template.basis == Basis::Crate {
        readme += SDK_NOTE;
    }
    put(dir, "README.md", &readme)
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
        // As shells quote it.
        dir.display().to_string().replace('\'', r"'\''")
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
            "",
            "..",
            "/",
            "2guest",
            "Guest",
            "a b",
            "gäst",
            "-a",
            "a.b",
            "some/..",
            "some/inet-guest",
            "build",
            "deps",
            "some/examples",
            "incremental",
        ] {
            assert!(name(Path::new(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_may_hold_that_of_the_template() {
        let build = |contract| {
            let template = template("rust", Some(contract), false).unwrap();
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
    fn a_module_in_go_clashes_with_no_package_of_the_standard_library() {
        let template = template("go", None, false).unwrap();
        let (_, module) = template.files.iter().find(|(file, _)| *file == "go.mod").unwrap();
        for name in ["std", "fmt", "toolchain"] {
            let module = template.own(module, name);
            assert!(
                module.starts_with(&format!("module example.com/{name}\n")),
                "{module}"
            );
        }
    }

    #[test]
    fn each_language_names_the_contracts_that_it_has() {
        let contract = |language, contract| template(language, contract, false).unwrap().contract;
        assert_eq!(contract("rust", None), "streams");
        assert_eq!(contract("c", Some("sessions")), "sessions");
        let error = template("js", Some("cli"), false).unwrap_err().to_string();
        assert_eq!(
            error,
            "--lang js has no template for --contract cli: expected sessions"
        );
        let error = template("rust", Some("none"), false).unwrap_err().to_string();
        assert!(
            error.ends_with(": expected streams or sessions or cli"),
            "{error}"
        );
    }

    #[test]
    fn bare_templates_are_those_of_rust_that_have_a_crate() {
        for contract in ["streams", "sessions"] {
            let basis = |bare| template("rust", Some(contract), bare).unwrap().basis;
            assert_eq!(basis(false), Basis::Crate, "{contract}");
            assert_eq!(basis(true), Basis::Bindings, "{contract}");
        }
        for (language, contract) in [("rust", Some("cli")), ("c", Some("sessions")), ("js", None)] {
            let error = template(language, contract, true).unwrap_err().to_string();
            assert_eq!(
                error,
                "--bare requires --lang rust with --contract streams or sessions"
            );
        }
    }
}
