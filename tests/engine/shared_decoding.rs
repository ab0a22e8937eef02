//! Answers that are decoded together, and prompts that share their beginning: each answer is the one it would have been
//! alone.

use crate::is_emulated;
use bitnetd::engine::grammar::GrammarSource;
use bitnetd::engine::kernels::Kernels;
use bitnetd::engine::model::KV_BLOCK;
use bitnetd::engine::sampler::SamplingParams;
use bitnetd::engine::session::{Answer, GenerateOptions, Session, Step, StopReason};
use bitnetd::engine::{Engine, EngineOptions, ModelFile, Source};
use std::ops::ControlFlow;

const CONTEXT: usize = 400;

pub fn engine(kernel: &str, threads: usize) -> Engine {
    let options = EngineOptions { threads, kernel: Some(kernel.to_owned()), ..EngineOptions::default() };
    ModelFile::open(&Source::BuiltIn, None).and_then(|file| file.load(&options)).expect("sound")
}

/// A request, and after how many steps of the session it comes.
#[derive(Clone)]
pub struct Job {
    pub after: usize,
    pub prompt: Vec<u32>,
    pub options: GenerateOptions,
}

pub fn go_on(_: Step<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Requests of many kinds: prompts of all lengths around a block and a batch, greedy and seeded, with log-probabilities
/// and under a grammar.
fn jobs(engine: &Engine) -> Vec<Job> {
    let schema = r#"{"type":"object","properties":{"a":{"enum":["one","two"]},"b":{"type":"integer"}},
        "required":["a","b"],"additionalProperties":false}"#;
    let constraint =
        engine.grammars().and_then(|grammars| grammars.compile(&GrammarSource::JsonSchema(schema.into())));
    let constraint = constraint.expect("sound");
    let lengths = [1, 7, KV_BLOCK - 1, KV_BLOCK, KV_BLOCK + 1, 130, 200];
    let vocab = engine.model().shape().vocab as u32;
    (0..lengths.len() * 2)
        .map(|at| {
            let length = lengths[at % lengths.len()];
            let prompt = (0..length as u32).map(|i| (i * 7 + at as u32 % 3) % vocab).collect();
            let warm = SamplingParams { temperature: 0.9, seed: at as u64, ..SamplingParams::default() };
            let sampling = if at % 2 == 0 { SamplingParams::default() } else { warm };
            let options = GenerateOptions {
                sampling,
                max_tokens: Some([1, 9, 24][at % 3]),
                ignore_eos: true,
                logprobs: (at % 5 == 4).then_some(2),
                constraint: (at % 4 == 3).then(|| constraint.clone()),
                ..GenerateOptions::default()
            };
            Job { after: at * 3 % 8, prompt, options }
        })
        .collect()
}

/// The answers of one session of so many slots, in which each job begins as soon as it came and a slot is free.
pub fn together(session: &mut Session<'_>, jobs: &[Job]) -> Vec<Answer> {
    let mut answers: Vec<Option<Answer>> = vec![None; jobs.len()];
    let mut running: Vec<Option<usize>> = vec![None; session.slots()];
    let mut waiting: Vec<usize> = (0..jobs.len()).collect();
    for step in 0.. {
        for (slot, running) in running.iter_mut().enumerate().filter(|(_, running)| running.is_none()) {
            if let Some(at) = waiting.iter().position(|job| jobs[*job].after <= step) {
                let job = waiting.remove(at);
                session.begin(slot, &jobs[job].prompt, &jobs[job].options).expect("sound");
                *running = Some(job);
            }
        }
        session.step(|_, _| ControlFlow::Continue(()));
        for (slot, running) in running.iter_mut().enumerate() {
            if let Some(answer) = session.take_answer(slot) {
                let job = running.take().expect("it ran");
                answers[job] = Some(answer.expect("sound"));
            }
        }
        if waiting.is_empty() && running.iter().all(Option::is_none) {
            break;
        }
    }
    answers.into_iter().map(|answer| answer.expect("answered")).collect()
}

#[test]
fn answers_in_company_are_those_of_one_alone() {
    let (threads, slots): (&[usize], &[usize]) = if is_emulated() { (&[2], &[3]) } else { (&[2], &[3, 16]) };
    for kernels in Kernels::all() {
        for threads in threads {
            let engine = engine(kernels.name(), *threads);
            // The reference is slow, and the same for every number of threads.
            let count = if kernels.name() == "scalar" || is_emulated() { 6 } else { 14 };
            let jobs = &jobs(&engine)[..count];
            let alone: Vec<Answer> = jobs
                .iter()
                .map(|job| engine.session(CONTEXT).generate(&job.prompt, &job.options, go_on).expect("sound"))
                .collect();
            for slots in slots {
                let company = together(&mut engine.shared_session(CONTEXT, *slots), jobs);
                for (at, (company, alone)) in company.iter().zip(&alone).enumerate() {
                    let place = format!("{}, {threads} threads, {slots} slots, job {at}", kernels.name());
                    assert_eq!(company.tokens, alone.tokens, "{place}");
                    assert_eq!((&company.text, company.end), (&alone.text, alone.end), "{place}");
                    assert_eq!(
                        (company.forced, &company.logprobs),
                        (alone.forced, &alone.logprobs),
                        "{place}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_second_question_behind_the_same_text_reads_its_own_tokens_only() {
    let engine = engine(Kernels::detect().name(), 2);
    let vocab = engine.model().shape().vocab as u32;
    let text: Vec<u32> = (0..300).map(|i| i * 11 % vocab).collect();
    let options = GenerateOptions {
        max_tokens: Some(5),
        ignore_eos: true,
        logprobs: Some(3),
        ..GenerateOptions::default()
    };
    let mut session = engine.shared_session(CONTEXT, 2);
    for (question, wanted) in [(1, 0), (2, 256), (3, 256), (1, 256)] {
        let prompt: Vec<u32> = text.iter().copied().chain([question; 4]).collect();
        let found = session.generate(&prompt, &options, go_on).expect("sound");
        let alone = engine.session(CONTEXT).generate(&prompt, &options, go_on).expect("sound");
        assert_eq!((found.cached, alone.cached), (wanted, 0), "{question}");
        // The log-probabilities are those of the logits, to the bit.
        assert_eq!((&found.tokens, &found.logprobs), (&alone.tokens, &alone.logprobs), "{question}");
    }
    // A conversation: what was answered is found too, in whole blocks.
    let longer = GenerateOptions { max_tokens: Some(60), ..options.clone() };
    let first = session.generate(&text[..100], &longer, go_on).expect("sound");
    let next: Vec<u32> = text[..100].iter().chain(&first.tokens).copied().chain([5, 6, 7]).collect();
    let second = session.generate(&next, &options, go_on).expect("sound");
    assert_eq!(second.cached, 128, "of 159 tokens that are in the cache");
    let alone = engine.session(CONTEXT).generate(&next, &options, go_on).expect("sound");
    assert_eq!((&second.tokens, &second.logprobs), (&alone.tokens, &alone.logprobs));
}

#[test]
fn a_second_question_behind_three_thousand_tokens_reads_at_most_a_block_besides_its_own() {
    let file = ModelFile::open(&Source::File(crate::data("reference/b158-tiny.i2_s.gguf")), None);
    let options = EngineOptions { threads: 2, ..EngineOptions::default() };
    let engine = file.and_then(|file| file.load(&options)).expect("sound");
    let shared = if is_emulated() { 600 } else { 3000 };
    let context = shared + 400;
    let options = GenerateOptions {
        max_tokens: Some(5),
        ignore_eos: true,
        logprobs: Some(3),
        ..GenerateOptions::default()
    };
    // Whatever of the last block is shared.
    for more in [0, 7, 8, 63] {
        let text: Vec<u32> = (0..shared as u32 + more).map(|i| (i * 11 + more + i % 13) % 500).collect();
        let question = |number: u32| -> Vec<u32> { text.iter().copied().chain([number; 20]).collect() };
        let mut session = engine.shared_session(context, 2);
        assert_eq!(session.generate(&question(1), &options, go_on).expect("sound").cached, 0);
        // Beside another answer a pass reads 4 to 12 tokens, so that passes count what is read.
        let endless = GenerateOptions { max_tokens: Some(390), ..options.clone() };
        session.begin(1, &[3], &endless).expect("sound");
        session.step(|_, step| go_on(step));
        session.begin(0, &question(2), &options).expect("sound");
        let (mut passes, mut is_answered) = (0, false);
        let answer = loop {
            passes += usize::from(!is_answered);
            session.step(|slot, step| {
                is_answered |= slot == 0 && matches!(step, Step::Token(_));
                ControlFlow::Continue(())
            });
            if let Some(answer) = session.take_answer(0) {
                break answer.expect("sound");
            }
        };
        assert!(passes <= (20 + KV_BLOCK).div_ceil(4), "{more}: {passes} passes");
        assert!(question(2).len() - answer.cached <= 20 + KV_BLOCK, "{more}: {} found", answer.cached);
        let alone = engine.session(context).generate(&question(2), &options, go_on).expect("sound");
        assert_eq!((&answer.tokens, &answer.logprobs), (&alone.tokens, &alone.logprobs), "{more}");
    }
}

#[test]
fn prompts_that_begin_alike_and_come_at_once_are_read_once() {
    let engine = engine(Kernels::detect().name(), 2);
    let mut session = engine.shared_session(CONTEXT, 4);
    let text: Vec<u32> = (0..256).map(|i| i % 512).collect();
    let options = GenerateOptions { max_tokens: Some(8), ignore_eos: true, ..GenerateOptions::default() };
    let jobs: Vec<Job> = (0..4)
        .map(|at| Job {
            after: 0,
            prompt: text.iter().copied().chain([at, at]).collect(),
            options: options.clone(),
        })
        .collect();
    let answers = together(&mut session, &jobs);
    assert!(answers[1..].iter().all(|answer| answer.cached >= 128), "{answers:?}");
    for (job, answer) in jobs.iter().zip(&answers) {
        let alone = engine.session(CONTEXT).generate(&job.prompt, &job.options, go_on).expect("sound");
        assert_eq!(alone.tokens, answer.tokens);
    }
}

#[test]
fn scopes_share_nothing() {
    let engine = engine(Kernels::detect().name(), 1);
    let mut session = engine.shared_session(CONTEXT, 2);
    let prompt: Vec<u32> = (0..200).collect();
    let cached: Vec<usize> = [1, 2, 1, 2]
        .map(|prefix_scope| {
            let options = GenerateOptions { max_tokens: Some(2), prefix_scope, ..GenerateOptions::default() };
            session.generate(&prompt, &options, go_on).expect("sound").cached
        })
        .into();
    assert_eq!(cached, [0, 0, 192, 192]);
}

#[test]
fn texts_come_and_go_for_a_long_time_and_every_answer_is_right() {
    let engine = engine(Kernels::detect().name(), 2);
    let mut session = engine.shared_session(192, 2);
    let options = GenerateOptions { max_tokens: Some(4), ignore_eos: true, ..GenerateOptions::default() };
    let mut found = 0;
    for round in 0..if is_emulated() { 12 } else { 120u32 } {
        // Few beginnings and many ends, so that blocks are found, evicted and made anew.
        let (begin, end) = (round / 2 % 3, round * 13 % 11);
        let prompt: Vec<u32> =
            (0..70).map(|i| i + begin).chain((0..70).map(|i| i * 2 + end)).chain([round]).collect();
        let answer = session.generate(&prompt, &options, go_on).expect("sound");
        let alone = engine.session(192).generate(&prompt, &options, go_on).expect("sound");
        assert_eq!(answer.tokens, alone.tokens, "{round}");
        found += answer.cached;
    }
    assert!(found > 0);
}

#[test]
fn an_answer_that_is_cancelled_leaves_the_others_alone() {
    let engine = engine(Kernels::detect().name(), 2);
    let mut session = engine.shared_session(CONTEXT, 3);
    let options = GenerateOptions { max_tokens: Some(20), ignore_eos: true, ..GenerateOptions::default() };
    let prompts: Vec<Vec<u32>> = (0..3).map(|at| (0..150).map(|i| i + at).collect()).collect();
    for (slot, prompt) in prompts.iter().enumerate() {
        session.begin(slot, prompt, &options).expect("sound");
    }
    let mut answers = [const { None }; 3];
    // The first is cancelled while its prompt is read, the second after some tokens.
    let mut tokens = 0;
    while answers.iter().any(Option::is_none) {
        session.step(|slot, step| {
            tokens += usize::from(slot == 1 && matches!(step, Step::Token(_)));
            let is_over = (slot == 0 && matches!(step, Step::Prefill(_))) || (slot == 1 && tokens == 5);
            if is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        for (slot, answer) in answers.iter_mut().enumerate() {
            *answer = answer.take().or_else(|| session.take_answer(slot));
        }
    }
    let [first, second, third] = answers.map(|answer| answer.expect("ended").expect("sound"));
    assert_eq!((first.end, first.tokens.len()), (StopReason::Cancelled, 0));
    assert_eq!((second.end, second.tokens.len()), (StopReason::Cancelled, 5));
    let alone = engine.session(CONTEXT).generate(&prompts[2], &options, go_on).expect("sound");
    assert_eq!((third.end, third.tokens), (StopReason::Length, alone.tokens));
    // Slots are used again, and nothing of before is left in them.
    session.reset();
    let again = session.generate(&prompts[0], &options, go_on).expect("sound");
    assert_eq!(again.cached, 0);
}

#[test]
fn a_short_prompt_does_not_wait_for_the_long_ones_before_it() {
    let engine = engine(Kernels::detect().name(), 2);
    let options = GenerateOptions { max_tokens: Some(200), ignore_eos: true, ..GenerateOptions::default() };
    // Beside an answer, and without one.
    for has_answer in [true, false] {
        let mut session = engine.shared_session(CONTEXT, 5);
        if has_answer {
            session.begin(4, &[3], &options).expect("sound");
            session.step(|_, step| go_on(step));
        }
        for slot in 0..3 {
            let long: Vec<u32> = (0..380).map(|i| (i * 7 + slot as u32) % 500).collect();
            session.begin(slot, &long, &options).expect("sound");
        }
        session.step(|_, step| go_on(step));
        session.begin(3, &(40..60).collect::<Vec<u32>>(), &options).expect("sound");
        let (mut passes, mut is_answered) = (0, false);
        while !is_answered {
            passes += 1;
            session.step(|slot, step| {
                is_answered |= slot == 3 && matches!(step, Step::Token(_));
                ControlFlow::Continue(())
            });
        }
        // Its own 20 tokens take five passes beside an answer where each reads four; every fourth goes to the oldest prompt.
        assert!(passes <= if has_answer { 7 } else { 2 }, "{passes} passes");
    }
}

#[test]
fn a_long_prompt_is_read_although_short_ones_come_without_end() {
    let engine = engine(Kernels::detect().name(), 2);
    let options = GenerateOptions { max_tokens: Some(1), ignore_eos: true, ..GenerateOptions::default() };
    let mut session = engine.shared_session(CONTEXT, 5);
    let beside = GenerateOptions { max_tokens: Some(390), ..options.clone() };
    session.begin(4, &[3], &beside).expect("sound");
    session.step(|_, step| go_on(step));
    let long: Vec<u32> = (0..300).map(|i| i * 7 % 500).collect();
    session.begin(0, &long, &options).expect("sound");
    let (mut passes, mut short) = (0, 0);
    let answer = loop {
        for slot in 1..4 {
            // One that ended makes place for the next.
            if session.take_answer(slot).is_some() || passes == 0 {
                short += 1;
                let prompt: Vec<u32> = (0..30).map(|i| (i * 3 + short) % 500).collect();
                session.begin(slot, &prompt, &options).expect("sound");
            }
        }
        passes += 1;
        session.step(|_, step| go_on(step));
        if let Some(answer) = session.take_answer(0) {
            break answer.expect("sound");
        }
    };
    let alone = engine.session(CONTEXT).generate(&long, &options, go_on).expect("sound");
    assert_eq!(answer.tokens, alone.tokens);
    // Four tokens at least in every fourth pass.
    assert!(passes <= 4 * 300_usize.div_ceil(4) + 4, "{passes} passes");
    assert!(short > 20, "{short}");
}
