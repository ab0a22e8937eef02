//! `bitnetd convert`: converts a checkpoint folder or another GGUF file to a GGUF file in the formats that are fastest
//! here. Deliberately knows no tensor format; the engine converts.

use crate::cli::model_args::layout_arg;
use crate::cli::{Failure, host, print};
use crate::engine::convert::resumable_output::{self, Progress, ResumableOutput, Stage, hex};
use crate::engine::convert::{
    self, CheckpointFolder, ConvertOptions, ConvertPlan, TableFormat, WeightFormat,
};
use crate::engine::error::LoadError;
use crate::engine::gguf::{FileMap, Gguf, with_name_hint};
use crate::engine::model::{HeadFormat, Layout};
use crate::engine::quant::TensorType;
use crate::engine::{EngineOptions as Run, ModelFile, Source};
use clap::ValueEnum;
use sha2::{Digest, Sha256};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

/// Make a model file of a Hugging Face checkpoint folder, or of another GGUF file
///
/// The output is written as OUT.bitnetd-part; an interrupted run goes on where it stopped when the same
/// command is given again. Its SHA-256 is printed at the end.
#[derive(Debug, Clone, clap::Args)]
pub(in crate::cli) struct Convert {
    /// Format of the ternary weights
    #[arg(long, value_name = "FORM", value_enum, default_value_t)]
    weights: WeightsArg,
    /// Format of embedding and head [default: their own, in the fewest bits without loss]
    #[arg(long, value_name = "FORM", value_enum)]
    head: Option<HeadArg>,
    /// Layout of I2_S weights in IN, which a file does not say: 128, the official one, 64 or 1x4; auto detects it
    /// with a short text
    #[arg(long, value_name = "LAYOUT", default_value = "auto", value_parser = layout_arg())]
    from_layout: String,
    /// Replace OUT
    #[arg(long)]
    force: bool,
    /// A folder with config.json, tokenizer.json and safetensors weights, or a GGUF file
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The GGUF file to write
    #[arg(value_name = "OUT")]
    output: PathBuf,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum WeightsArg {
    #[default]
    #[value(name = "i2_s")]
    I2S,
    #[value(name = "tq1_0")]
    Tq1,
    #[value(name = "tq2_0")]
    Tq2,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum HeadArg {
    F16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q6_k")]
    Q6K,
}

impl Convert {
    fn options(&self) -> ConvertOptions {
        ConvertOptions {
            weights: match self.weights {
                WeightsArg::I2S => WeightFormat::I2S,
                WeightsArg::Tq1 => WeightFormat::Tq1,
                WeightsArg::Tq2 => WeightFormat::Tq2,
            },
            head: self.head.map(|head| match head {
                HeadArg::F16 => TableFormat::F16,
                HeadArg::Q8_0 => TableFormat::Q8_0,
                HeadArg::Q6K => TableFormat::Q6K,
            }),
            from: Layout::by_name(&self.from_layout).unwrap_or_default(),
        }
    }
}

pub(in crate::cli) fn run(args: Convert) -> Result<(), Failure> {
    check_paths(&args)?;
    let place = one_line_path(&args.input);
    let (plan, files) = plan(&args, &place)?;
    // Before anything is written, so that a damaged source leaves no half file behind.
    plan.verify().map_err(|error| error.within(&place))?;
    check_disk_space(&args.output, &plan)?;
    let mut part = ResumableOutput::open(&args.output).map_err(|error| refused(&args.output, &error))?;
    let mut screen = ProgressLine::new();
    plan.notes().iter().for_each(|note| screen.line(&format!("note: {note}")));
    let origin = source_fingerprint(&args, &files);
    let written = part.write(&plan, &origin, &mut |progress| screen.show(&progress));
    screen.clear();
    let written = match written {
        Ok(checksum) => verify_output(&part, &plan).map(|()| checksum).map_err(convert::ConvertError::Source),
        error => error,
    };
    match written {
        Ok(checksum) => {
            part.finish(args.force).map_err(|error| refused(&args.output, &error))?;
            print(format!("{checksum}  {}\n", one_line_path(&args.output)).as_bytes())
        }
        Err(convert::ConvertError::Source(error)) => {
            // An error in the source will not go away, so nothing is kept to resume.
            part.discard().map_err(|error| refused(&args.output, &error))?;
            Err(error.within(&place).into())
        }
        Err(convert::ConvertError::Output(error)) => {
            let message =
                format!("{}: {error}; the same command goes on from there", one_line_path(part.path()));
            Err(Failure::system(message))
        }
    }
}

/// A path for a message of one line.
fn one_line_path(path: &Path) -> String {
    path.display().to_string().replace(char::is_control, "?")
}

fn refused(output: &Path, error: &io::Error) -> Failure {
    Failure::system(format!("{}: cannot be written: {error}", one_line_path(output)))
}

fn check_paths(args: &Convert) -> Result<(), Failure> {
    let (input, output) = (&args.input, &args.output);
    let usage = |message: &str| Err(Failure::usage(format!("{}: {message}", one_line_path(output))));
    let is_input = |path: &Path| {
        input.canonicalize().ok().zip(path.canonicalize().ok()).is_some_and(|(input, path)| input == path)
    };
    if [output.clone(), resumable_output::path(output), resumable_output::journal_path(output)]
        .iter()
        .any(|path| is_input(path))
    {
        return usage("it, or a file beside it while it is written, is IN too; give another name");
    }
    let of_checkpoint = output.extension().is_some_and(|kind| kind == "safetensors" || kind == "json");
    if of_checkpoint {
        return usage("named as a part of a checkpoint; name it .gguf");
    }
    if output.is_dir() {
        return usage("a folder; name the file to write");
    }
    match output.symlink_metadata() {
        // A symbolic link too: it would not be clear whether the link or its target is to be replaced.
        Ok(there) if !there.is_file() => return usage("no regular file; give another name"),
        Ok(_) if !args.force => {
            return usage("exists already; give another name, or --force to replace it");
        }
        _ => {}
    }
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty());
    match folder.is_none_or(Path::is_dir) && output.file_name().is_some() {
        true => Ok(()),
        false => usage("its folder does not exist; make it first"),
    }
}

/// The conversion plan, and the files that it reads.
fn plan(args: &Convert, place: &str) -> Result<(ConvertPlan, Vec<PathBuf>), LoadError> {
    let within = |error: LoadError| error.within(place);
    let mut options = args.options();
    if args.input.is_dir() {
        let folder = CheckpointFolder::open(&args.input);
        let plan = ConvertPlan::checkpoint(&folder, &options).map_err(within)?;
        return Ok((plan, folder.requested()));
    }
    let map = FileMap::open(&args.input);
    let map = map.map_err(|error| LoadError::new(place, format!("cannot be read: {error}")))?;
    let file = Gguf::parse(map).map_err(|error| within(with_name_hint(error, &args.input)))?;
    let mut message = None;
    let has_layout = file.tensors().iter().any(|tensor| tensor.kind == TensorType::I2S);
    if has_layout && Layout::by_name(&args.from_layout).is_none() {
        (options.from, message) = detect_layout(&args.input)?;
    }
    let mut plan = ConvertPlan::file(&file, &options).map_err(within)?;
    message.into_iter().for_each(|message| plan.note(message));
    Ok((plan, vec![args.input.clone()]))
}

/// The layout that is detected with a short text, and a note about it.
fn detect_layout(input: &Path) -> Result<(Layout, Option<String>), LoadError> {
    let run = Run { threads: host::host().threads(), ..Run::default() };
    let file = ModelFile::open(&Source::File(input.to_owned()), None)?;
    // Another format of the head would be derived only for this check.
    let engine = file.with_head(Some(HeadFormat::File))?.load(&run)?;
    let message = engine.notes().iter().find(|note| note.contains("I2_S")).cloned();
    Ok((engine.layout(), message))
}

/// Checks for enough free disk space before the conversion begins.
fn check_disk_space(output: &Path, plan: &ConvertPlan) -> Result<(), Failure> {
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty());
    let Ok(disk) = rustix::fs::statvfs(folder.unwrap_or(Path::new("."))) else { return Ok(()) };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let there = std::fs::symlink_metadata(resumable_output::path(output)).map_or(0, |part| part.len());
    let wanted = plan.draft().file_bytes().saturating_sub(there);
    match wanted <= free {
        true => Ok(()),
        false => {
            let message = format!("{} MiB are wanted and {} MiB free", wanted.div_ceil(1 << 20), free >> 20);
            Err(Failure::system(format!("{}: {message}; free some space", one_line_path(output))))
        }
    }
}

/// A fingerprint of the conversion, so that only the same one is resumed: program, options, and size and time of
/// each file that is read. Other files of the folder may change; OUT may be one of them.
fn source_fingerprint(args: &Convert, files: &[PathBuf]) -> String {
    let mut digest = Sha256::new();
    // The layout argument, not the detected layout, which depends on the file alone.
    let program = env!("CARGO_PKG_VERSION");
    digest.update(format!("{program} {:?} {} {}", args.options(), args.from_layout, args.input.display()));
    for file in files {
        let data = std::fs::metadata(file).ok().map(|data| (data.len(), data.modified().ok()));
        digest.update(format!("\n{} {data:?}", file.display()));
    }
    hex(digest)
}

/// Opens the written file as the daemon will, and loads it where that copies no weights.
fn verify_output(part: &ResumableOutput, plan: &ConvertPlan) -> Result<(), LoadError> {
    let in_written_file = |error: LoadError| LoadError::new("the written file", error.to_string());
    let source = Source::File(part.path().to_owned());
    let file = ModelFile::open(&source, Some(Layout::Blocks128)).map_err(in_written_file)?;
    let (read, planned) = (file.file().tensors(), plan.draft().tensors());
    let same = read.iter().zip(planned).all(|(read, planned)| {
        (&read.name, read.kind, &read.dims) == (&planned.name, planned.kind, &planned.dims)
    });
    if !same || read.len() != planned.len() {
        return Err(LoadError::new("the written file", "holds other tensors than were written"));
    }
    if file.footprint().copied == 0 {
        let file = file.with_head(Some(HeadFormat::File)).map_err(in_written_file)?;
        file.load(&Run { threads: 1, ..Run::default() }).map_err(in_written_file)?;
    }
    Ok(())
}

/// Progress on standard error: a bar on a terminal, otherwise a line for every tenth.
struct ProgressLine {
    terminal: bool,
    /// Stage and tenths of the last line.
    message: Option<(Stage, u64)>,
}

impl ProgressLine {
    fn new() -> Self {
        ProgressLine { terminal: io::stderr().is_terminal(), message: None }
    }

    /// An error is ignored, since progress is not essential.
    fn write_stderr(text: &str) {
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }

    fn line(&self, text: &str) {
        Self::write_stderr(&format!("{text}\n"));
    }

    fn show(&mut self, progress: &Progress<'_>) {
        let total = progress.total.max(1);
        let doing = match progress.stage {
            Stage::Resuming => "found",
            Stage::Writing => "written",
            Stage::Checking => "checked",
        };
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let counts = format!("{} of {} MiB {doing}", mib(progress.done), mib(total));
        if self.terminal {
            const WIDTH: u64 = 24;
            let filled = (progress.done * WIDTH / total).min(WIDTH) as usize;
            let bar = format!("{:<width$}", "=".repeat(filled), width = WIDTH as usize);
            // Short enough to stay one line on any usual terminal.
            let tensor: String = progress.tensor.chars().take(26).collect();
            return Self::write_stderr(&format!("\r[{bar}] {counts} {tensor}\x1b[K"));
        }
        let tenths = progress.done * 10 / total;
        if self.message != Some((progress.stage, tenths)) {
            self.message = Some((progress.stage, tenths));
            self.line(&format!("{} % of {} MiB {doing}", tenths * 10, mib(total)));
        }
    }

    /// Clears the progress bar.
    fn clear(&self) {
        if self.terminal {
            Self::write_stderr("\r\x1b[K");
        }
    }
}
