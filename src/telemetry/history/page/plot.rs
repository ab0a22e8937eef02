//! One plot: lines, bands and bars over the time as SVG, with labels of its axes and a legend.
//!
//! The SVG is stretched to the width of the page, which its lines bear and letters would not, so that all letters are HTML
//! beside it. Deliberately knows no step of the history: values come in columns.

use super::axis::{TimeLabel, ValueAxis};
use super::escaped;
use std::fmt::Write;
use std::ops::Range;

/// The inner size of the drawing. The height in pixels is that of the style sheet, and the width is the page's.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 200.0;
/// The height of a strip.
const STRIP: f64 = 10.0;

/// A value for each column of time; `None` where there is none.
pub(super) type Values = Vec<Option<f64>>;

/// One part of a plot.
#[derive(Debug, Clone)]
pub(super) enum Mark {
    /// A line, broken where there is no value.
    Line(Values),
    /// The area between two values.
    Band(Values, Values),
    /// Bars from the lower end.
    Bars(Values),
    /// Bars on top of other bars: from where these end to where both together end.
    Stacked(Values, Values),
    /// A strip where something was so, at this height above the lower end, in strips.
    Strip(Vec<bool>, u8),
}

/// A mark with its name in the legend and its class in the style sheet.
#[derive(Debug, Clone)]
pub(super) struct Series {
    pub label: String,
    pub class: &'static str,
    pub mark: Mark,
}

/// A plot.
#[derive(Debug, Clone)]
pub(super) struct Plot {
    pub title: &'static str,
    pub unit: &'static str,
    /// What is most important about it, in a few words.
    pub note: String,
    /// Whether its scale begins at 0.
    pub from_zero: bool,
    pub series: Vec<Series>,
}

/// What all plots of a page share.
#[derive(Debug, Clone)]
pub(super) struct PlotFrame {
    pub times: Vec<TimeLabel>,
    /// The columns of time in which the daemon did not run.
    pub gaps: Vec<bool>,
}

impl Plot {
    /// The plot as HTML.
    pub fn html(&self, frame: &PlotFrame) -> String {
        let mut html = format!(
            "<section class=\"plot\"><h2>{} <small>{}</small></h2><p class=\"note\">{}</p>",
            escaped(self.title),
            escaped(self.unit),
            escaped(&self.note)
        );
        let Some(axis) = self.axis() else {
            html.push_str("<p class=\"none\">nothing was measured in this time</p></section>\n");
            return html;
        };
        html.push_str("<div class=\"frame\"><div class=\"values\">");
        for (value, text) in &axis.labels {
            put(
                &mut html,
                format_args!("<span style=\"bottom:{:.1}%\">{text}</span>", axis.place(*value) * 100.0),
            );
        }
        html.push_str("</div>");
        self.draw(&mut html, &axis, frame);
        html.push_str("<div class=\"times\">");
        for label in &frame.times {
            let class = if label.is_minor { " class=\"minor\"" } else { "" };
            let place = label.place * 100.0;
            put(
                &mut html,
                format_args!("<span{class} style=\"left:{place:.2}%\">{}</span>", escaped(&label.text)),
            );
        }
        html.push_str("</div></div>");
        self.write_legend(&mut html, frame);
        html.push_str("</section>\n");
        html
    }

    /// `None` where there is no value at all.
    fn axis(&self) -> Option<ValueAxis> {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in self.series.iter().flat_map(|series| series.mark.values()) {
            (low, high) = (low.min(value), high.max(value));
        }
        (low <= high).then(|| ValueAxis::covering(if self.from_zero { low.min(0.0) } else { low }, high))
    }

    fn draw(&self, html: &mut String, axis: &ValueAxis, frame: &PlotFrame) {
        let label = escaped(&format!("{}: {}", self.title, self.note));
        put(
            html,
            format_args!(
                "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{label}\">"
            ),
        );
        let columns = Columns { count: frame.gaps.len().max(1), axis };
        html.push_str(&path("gap", &columns.strip(&frame.gaps, HEIGHT, 0.0)));
        let mut grid = String::new();
        for (value, _) in &axis.labels {
            put(&mut grid, format_args!("M0 {:.1}H{WIDTH}", columns.y(*value)));
        }
        for label in &frame.times {
            put(&mut grid, format_args!("M{:.1} 0V{HEIGHT}", label.place * WIDTH));
        }
        html.push_str(&path("grid", &grid));
        for series in &self.series {
            html.push_str(&path(
                &format!("{} {}", series.mark.class(), series.class),
                &columns.outline(&series.mark),
            ));
            if let Mark::Line(values) = &series.mark {
                html.push_str(&path(&format!("line dot {}", series.class), &columns.dots(values)));
            }
        }
        html.push_str("</svg>");
    }

    fn write_legend(&self, html: &mut String, frame: &PlotFrame) {
        html.push_str("<ul class=\"legend\">");
        for series in &self.series {
            let (kind, class) = (series.mark.class(), series.class);
            put(html, format_args!("<li><i class=\"{kind} {class}\"></i>{}</li>", escaped(&series.label)));
        }
        if frame.gaps.contains(&true) {
            html.push_str("<li><i class=\"gap\"></i>not running</li>");
        }
        html.push_str("</ul>");
    }
}

fn path(class: &str, outline: &str) -> String {
    if outline.is_empty() { String::new() } else { format!("<path class=\"{class}\" d=\"{outline}\"/>") }
}

fn put(text: &mut String, more: std::fmt::Arguments<'_>) {
    text.write_fmt(more).expect("a string takes everything");
}

impl Mark {
    fn class(&self) -> &'static str {
        match self {
            Mark::Line(_) => "line",
            Mark::Band(..) => "band",
            Mark::Bars(_) | Mark::Stacked(..) => "bars",
            Mark::Strip(..) => "strip",
        }
    }

    /// The values that have to be on the scale.
    fn values(&self) -> Vec<f64> {
        match self {
            Mark::Line(values) | Mark::Bars(values) => values.iter().flatten().copied().collect(),
            Mark::Band(low, high) => low.iter().chain(high).flatten().copied().collect(),
            Mark::Stacked(below, above) => {
                let both = below.iter().zip(above);
                both.filter_map(|(below, above)| Some(below.unwrap_or(0.0) + (*above)?)).collect()
            }
            Mark::Strip(..) => Vec::new(),
        }
    }
}

/// The columns of time in the drawing.
struct Columns<'a> {
    count: usize,
    axis: &'a ValueAxis,
}

impl Columns<'_> {
    /// The left end of a column.
    fn x(&self, column: usize) -> f64 {
        WIDTH * column as f64 / self.count as f64
    }

    fn center(&self, column: usize) -> f64 {
        (self.x(column) + self.x(column + 1)) / 2.0
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT * (1.0 - self.axis.place(value))
    }

    fn outline(&self, mark: &Mark) -> String {
        match mark {
            Mark::Line(values) => self.line(values),
            Mark::Band(low, high) => self.band(low, high),
            Mark::Bars(values) => self.bars(&vec![None; values.len()], values),
            Mark::Stacked(below, above) => self.bars(below, above),
            Mark::Strip(is_so, level) => {
                let foot = HEIGHT - f64::from(*level) * STRIP;
                self.strip(is_so, foot, foot - STRIP)
            }
        }
    }

    /// Through the middles of the columns.
    fn line(&self, values: &Values) -> String {
        let mut outline = String::new();
        for run in runs(values.len(), |column| values[column].is_some()).filter(|run| run.len() > 1) {
            let points: Vec<String> = run.map(|column| self.point(values, column)).collect();
            put(&mut outline, format_args!("M{}", points.join("L")));
        }
        outline
    }

    /// The columns of a line that stand alone, as lines without a length: the style sheet makes dots of them.
    fn dots(&self, values: &Values) -> String {
        let alone = runs(values.len(), |column| values[column].is_some()).filter(|run| run.len() == 1);
        alone.map(|run| format!("M{}h0", self.point(values, run.start))).collect()
    }

    fn point(&self, values: &Values, column: usize) -> String {
        format!("{:.1} {:.1}", self.center(column), self.y(values[column].unwrap_or_default()))
    }

    fn band(&self, low: &Values, high: &Values) -> String {
        let mut outline = String::new();
        let columns = low.len().min(high.len());
        for run in runs(columns, |column| low[column].is_some() && high[column].is_some()) {
            let upper = run.clone().map(|column| self.point(high, column));
            let lower = run.rev().map(|column| self.point(low, column));
            put(&mut outline, format_args!("M{}Z", upper.chain(lower).collect::<Vec<_>>().join("L")));
        }
        outline
    }

    fn bars(&self, below: &Values, above: &Values) -> String {
        let mut outline = String::new();
        for (column, value) in above.iter().enumerate().filter_map(|(at, value)| Some((at, (*value)?))) {
            let foot = below.get(column).copied().flatten().unwrap_or(0.0);
            if value > 0.0 {
                let (x, next) = (self.x(column), self.x(column + 1));
                let (bottom, top) = (self.y(foot), self.y(foot + value));
                put(&mut outline, format_args!("M{x:.1} {bottom:.1}V{top:.1}H{next:.1}V{bottom:.1}Z"));
            }
        }
        outline
    }

    fn strip(&self, is_so: &[bool], foot: f64, top: f64) -> String {
        let mut outline = String::new();
        for run in runs(is_so.len(), |column| is_so[column]) {
            let (x, end) = (self.x(run.start), self.x(run.end));
            put(&mut outline, format_args!("M{x:.1} {foot:.1}V{top:.1}H{end:.1}V{foot:.1}Z"));
        }
        outline
    }
}

/// The runs of columns of which something is true.
fn runs(count: usize, is_so: impl Fn(usize) -> bool) -> std::vec::IntoIter<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    for column in (0..count).filter(|column| is_so(*column)) {
        match found.last_mut().filter(|run| run.end == column) {
            Some(run) => run.end = column + 1,
            None => found.push(column..column + 1),
        }
    }
    found.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(mark: Mark) -> Plot {
        let series = vec![Series { label: "a < b".into(), class: "first", mark }];
        Plot { title: "power", unit: "W", note: "4 W".into(), from_zero: true, series }
    }

    fn frame(gaps: &[bool]) -> PlotFrame {
        let times = vec![TimeLabel { place: 0.5, text: "12:00".into(), is_minor: false }];
        PlotFrame { times, gaps: gaps.to_vec() }
    }

    #[test]
    fn a_line_is_broken_where_there_is_no_value() {
        let values = vec![Some(0.0), Some(4.0), None, Some(2.0)];
        let html = plot(Mark::Line(values)).html(&frame(&[false, false, true, false]));
        assert!(html.contains("class=\"line first\" d=\"M125.0 200.0L375.0 0.0\""), "{html}");
        assert!(html.contains("class=\"line dot first\" d=\"M875.0 100.0h0\""), "{html}");
        assert!(html.contains("<path class=\"gap\" d=\"M500.0 200.0V0.0H750.0V200.0Z\"/>"), "{html}");
        assert!(html.contains("not running") && html.contains("a &lt; b"), "{html}");
        assert!(html.contains("<span style=\"bottom:50.0%\">2</span>"), "{html}");
    }

    #[test]
    fn bars_stand_on_others() {
        let (ok, failed) = (vec![Some(3.0), None], vec![Some(1.0), Some(2.0)]);
        let html = plot(Mark::Stacked(ok, failed)).html(&frame(&[false, false]));
        assert!(html.contains("M0.0 50.0V0.0H500.0V50.0ZM500.0 200.0V100.0H1000.0V200.0Z"), "{html}");
        assert!(!html.contains("not running"), "{html}");
    }

    #[test]
    fn a_band_lies_between_two_values() {
        let html = plot(Mark::Band(vec![Some(1.0); 2], vec![Some(4.0); 2])).html(&frame(&[false; 2]));
        assert!(html.contains("M250.0 0.0L750.0 0.0L750.0 150.0L250.0 150.0Z"), "{html}");
    }

    #[test]
    fn without_a_value_it_says_so_and_draws_nothing() {
        let html = plot(Mark::Line(vec![None; 3])).html(&frame(&[true; 3]));
        assert!(html.contains("nothing was measured") && !html.contains("<svg"), "{html}");
    }
}
