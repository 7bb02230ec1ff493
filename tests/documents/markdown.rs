//! The parts of a Markdown document that the tests check.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// A Markdown document of this project.
pub struct Document {
    /// Its path from the top of the project.
    pub path: String,
    pub text: String,
    pub fences: Vec<Fence>,
    /// The anchors that its headings have on code hosting sites.
    pub anchors: BTreeSet<String>,
    /// The destinations of its links and images.
    pub links: Vec<String>,
}

/// A fenced block of code.
pub struct Fence {
    /// What follows the three backticks.
    pub info: String,
    pub text: String,
    /// The line of the document that its text starts at, counted from 1.
    pub line: usize,
}

impl Document {
    pub fn read(path: &str) -> Self {
        let text = fs::read_to_string(guest_builder::workspace().join(path))
            .unwrap_or_else(|error| panic!("{path}: {error}"));
        let mut document = Self {
            path: path.to_owned(),
            text: String::new(),
            fences: Vec::new(),
            anchors: BTreeSet::new(),
            links: Vec::new(),
        };
        let mut heading: Option<String> = None;
        let mut fence: Option<Fence> = None;
        let events = Parser::new_ext(&text, Options::ENABLE_TABLES).into_offset_iter();
        for (event, range) in events {
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    document.anchors.extend(heading.take().map(|text| slug(&text)));
                }
                Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(info))) => {
                    fence = Some(Fence {
                        info: info.into_string(),
                        text: String::new(),
                        line: text[..range.start].matches('\n').count() + 2,
                    });
                }
                Event::End(TagEnd::CodeBlock) => document.fences.extend(fence.take()),
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    document.links.push(dest_url.into_string());
                }
                Event::Text(part) | Event::Code(part) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&part);
                    } else if let Some(fence) = &mut fence {
                        fence.text.push_str(&part);
                    }
                }
                _ => {}
            }
        }
        document.text = text;
        document
    }
}

/// Returns the anchor that code hosting sites give to a heading.
fn slug(heading: &str) -> String {
    let kept = heading
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .collect::<String>();
    kept.replace(' ', "-")
}

/// Lists the Markdown documents that belong to the project.
pub fn all() -> Vec<Document> {
    let workspace = guest_builder::workspace();
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.md"])
        .current_dir(workspace)
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let mut paths: Vec<PathBuf> = listed.lines().map(PathBuf::from).collect();
    paths.retain(|path| workspace.join(path).is_file());
    assert!(paths.len() > 15, "{listed}");
    paths
        .iter()
        .map(|path| Document::read(path.to_str().unwrap()))
        .collect()
}
