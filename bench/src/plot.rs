//! Plots: a bar for each contender, with the least and the greatest value of a round.

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::summary::{Row, short};

/// Sizes in pixels.
const WIDTH: u32 = 860;
const BAR: u32 = 26;
const TOP: u32 = 58;
const LEFT: i32 = 96;
const RIGHT: i32 = 120;

/// Legible on white and on black.
const TEXT: RGBColor = RGBColor(110, 118, 129);
const OURS: RGBColor = RGBColor(47, 129, 247);
const OTHERS: RGBColor = RGBColor(139, 148, 158);
const RANGE: RGBColor = RGBColor(219, 109, 40);

/// Horizontal bars of `rows` as an SVG document.
///
/// # Errors
///
/// The plotting library fails.
pub(crate) fn bars(title: &str, note: &str, rows: &[Row]) -> Result<String> {
    let mut svg = String::new();
    draw(&mut svg, title, note, rows).map_err(|error| anyhow!("cannot draw the plot {title:?}: {error}"))?;
    Ok(svg)
}

fn draw(svg: &mut String, title: &str, note: &str, rows: &[Row]) -> Result<(), String> {
    let height = TOP + BAR * rows.len() as u32 + 12;
    let area = SVGBackend::with_string(svg, (WIDTH, height)).into_drawing_area();
    let greatest = rows.iter().map(|row| row.high).fold(f64::MIN_POSITIVE, f64::max);
    let room = f64::from(WIDTH as i32 - LEFT - RIGHT);
    let at = |value: f64| LEFT + (value / greatest * room) as i32;
    let font = |size| ("sans-serif", size).into_font().color(&TEXT);
    let text = |text: String, x, y, size, side| {
        let style = font(size).pos(Pos::new(side, VPos::Center));
        area.draw_text(&text, &style, (x, y))
            .map_err(|error| error.to_string())
    };
    text(title.to_owned(), 8, 18, 17, HPos::Left)?;
    text(note.to_owned(), 8, 40, 12, HPos::Left)?;
    for (index, row) in rows.iter().enumerate() {
        let top = (TOP + BAR * index as u32) as i32;
        let middle = top + BAR as i32 / 2 - 2;
        let color = if row.ours { OURS } else { OTHERS };
        let bar = Rectangle::new(
            [(LEFT, top), (at(row.median), top + BAR as i32 - 6)],
            color.filled(),
        );
        let range = PathElement::new(
            vec![(at(row.low), middle), (at(row.high), middle)],
            RANGE.stroke_width(2),
        );
        area.draw(&bar).map_err(|error| error.to_string())?;
        area.draw(&range).map_err(|error| error.to_string())?;
        text(row.name.to_owned(), LEFT - 8, middle, 13, HPos::Right)?;
        text(short(row.median), at(row.high) + 8, middle, 13, HPos::Left)?;
    }
    area.present().map_err(|error| error.to_string())
}
