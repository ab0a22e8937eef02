//! The report of `inspect` as text. Deliberately reads no file.

use super::{HeadForms, InspectReport, LayoutCheck, MemoryNeeds, TokenText};
use crate::cli::board_fit::BoardFit;
use crate::engine::model::HeadFormat;
use crate::protocol::text::{Shown, one_line};
use std::fmt::Write;

/// Characters of a text that are shown; chat templates have thousands.
const MAX_SHOWN: usize = 60;

pub(super) fn page(report: &InspectReport, tensors: bool) -> String {
    let mut out = String::new();
    head(&mut out, report).expect("into a string");
    if tensors {
        for tensor in &report.tensors {
            let shape = format!("{:?}", tensor.shape);
            writeln!(out, "  {:<36} {:<6} {shape}", printable(&tensor.name), tensor.kind)
                .expect("into a string");
        }
    }
    if let Some(head) = &report.head {
        writeln!(out, "\nhead  {}", reading(head)).expect("into a string");
    }
    if let Some(memory) = &report.memory {
        plan(&mut out, memory).expect("into a string");
    }
    if let Some(check) = &report.check {
        figures(&mut out, check).expect("into a string");
    }
    out
}

fn head(out: &mut String, report: &InspectReport) -> std::fmt::Result {
    let name = report.name.as_deref().map_or(String::new(), |name| format!("{}, ", printable(name)));
    writeln!(out, "{name}{}, {:.1} MB", printable(&report.file), report.bytes as f64 / 1e6)?;
    if let Some(model) = &report.model {
        writeln!(
            out,
            "{}: {} layers, {} wide, {} heads over {} of {}, feed-forward {}, vocabulary {}, context {}",
            printable(&model.architecture),
            model.layers,
            model.width,
            model.heads,
            model.kv_heads,
            model.head_dim,
            model.feed_forward,
            model.vocabulary,
            model.context
        )?;
    }
    if let Some(tokenizer) = &report.tokenizer {
        let texts = |tokens: &[TokenText]| {
            tokens.iter().map(|t| format!("{} {}", t.id, printable(&t.text))).collect::<Vec<_>>().join(", ")
        };
        let beginning = texts(tokenizer.beginning.as_slice());
        writeln!(out, "begins with: {beginning}; ends with: {}", texts(&tokenizer.ends))?;
        writeln!(out, "chat template: {}", printable(&tokenizer.chat_template))?;
        for note in &tokenizer.notes {
            writeln!(out, "note: {}", one_line(note))?;
        }
    }
    writeln!(out, "\nmetadata")?;
    for entry in &report.metadata {
        writeln!(out, "  {:<44} {}", printable(&entry.key), value(&entry.value))?;
    }
    writeln!(out, "\ntensors")?;
    if let Some(layout) = report.i2s_layout {
        let known = if layout == "auto" { "detected when it is loaded (--check shows how)" } else { layout };
        writeln!(out, "  layout of I2_S: {known}")?;
    }
    for count in &report.types {
        writeln!(out, "  {:<6} {:>5} {:>10.1} MB", count.kind, count.tensors, count.bytes as f64 / 1e6)?;
    }
    Ok(())
}

fn value(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => printable(text),
        serde_json::Value::Object(array) => {
            let kind = array["array_of"].as_str().unwrap_or_default();
            format!("[{} {kind}]", array["length"])
        }
        other => other.to_string(),
    }
}

/// A text of the file on one line, without control characters and truncated.
fn printable(text: &str) -> String {
    let mut shown = Shown(text).to_string();
    if let Some((end, _)) = shown.char_indices().nth(MAX_SHOWN) {
        shown.truncate(end);
        shown.push('…');
    }
    shown
}

/// The description of the head.
fn reading(head: &HeadForms) -> String {
    let HeadForms { form, kind, .. } = head;
    let [whole, image] = [head.file_bytes, head.image_bytes].map(|bytes| bytes as f64 / 1e6);
    match HeadFormat::by_name(form) {
        Some(HeadFormat::Shortlist) => format!(
            "{form}: 4 bits of all rows, {image:.1} MB; {whole:.1} MB of the file read only where it matters"
        ),
        Some(HeadFormat::Q8 | HeadFormat::Q6K) => {
            format!("{form}: written again, {image:.1} MB, for the {whole:.1} MB of the file")
        }
        _ => format!("{form}: as the file has it, {kind}, {whole:.1} MB"),
    }
}

fn plan(out: &mut String, memory: &MemoryNeeds) -> std::fmt::Result {
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    writeln!(
        out,
        "\nmemory, in MiB: weights {:.1} mapped + {:.1} repacked, tokenizer {:.1}, scratch {:.1}, KV cache {:.1} KiB a token; \
         structured output from its first use {:.1}, and {:.1} for each request at the same time and one more",
        mib(memory.mapped),
        mib(memory.repacked),
        mib(memory.tokenizer),
        mib(memory.scratch),
        memory.cache_per_token as f64 / 1024.0,
        mib(memory.token_trie),
        mib(memory.per_grammar)
    )?;
    writeln!(
        out,
        "  {:<14} {:>8} {:>10} {:>9} {:>18}",
        "board", "budget", "context", "takes", "structured output"
    )?;
    for BoardFit { name, budget, fits, context, parallel, total, structured_output } in &memory.boards {
        let context = if *fits { format!("{parallel} x {context}") } else { "too small".into() };
        let more = structured_output.map_or("no".into(), |bytes| format!("{:.1} more", mib(bytes)));
        writeln!(out, "  {name:<14} {:>8.0} {context:>10} {:>9.1} {more:>18}", mib(*budget), mib(*total))?;
    }
    writeln!(out, "  A board's budget is three quarters of its memory, the default of budget.memory_mb.")
}

fn figures(out: &mut String, check: &LayoutCheck) -> std::fmt::Result {
    writeln!(out, "\nperplexity of a short text; random guessing has {}", check.chance)?;
    for figure in &check.layouts {
        writeln!(out, "  read as {:<4} {:>12.1}", figure.layout, figure.perplexity)?;
    }
    let verdict = match (check.trained, check.layout) {
        (false, Some(layout)) if layout != "128" => {
            format!(
                "{layout} is better than chance, but it looks untrained, and auto reads 128: name the layout"
            )
        }
        (_, Some(layout)) => format!("it is read as {layout}"),
        (false, None) => {
            "its weights were never trained: no text shows their layout; it is read as 128".into()
        }
        (true, None) => "it looks damaged, or has an unknown layout".into(),
    };
    writeln!(out, "  {verdict}")
}
