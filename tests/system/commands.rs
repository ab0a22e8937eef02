//! The commands that need no daemon.

use crate::daemon::{is_emulated, run, run_with_input};
use crate::support::broker::{Mosquitto, free_port};
use crate::{Folder, cases, data, linked, text};
use serde::Deserialize;
use serde_json::{Value, json};

#[tokio::test]
async fn help_lists_only_commands_that_there_are() {
    let ended = run(&["--help"]).await;
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{ended:?}");
    let lines = ended.out.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names: Vec<&str> = lines.map_while(|line| line.split_whitespace().next()).collect();
    assert!(
        ["serve", "ask", "generate", "perplexity", "inspect", "check-config"]
            .iter()
            .all(|name| names.contains(name)),
        "{names:?}"
    );
    for name in names.into_iter().filter(|name| *name != "help") {
        let ended = run(&[name, "--help"]).await;
        assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{name}: {ended:?}");
        assert!(ended.out.contains(&format!("Usage: bitnetd {name}")), "{ended:?}");
        let longest = ended.out.lines().max_by_key(|line| line.chars().count()).unwrap_or_default();
        assert!(longest.chars().count() <= 100, "{name}: {longest}");
    }
}

#[tokio::test]
async fn version_is_one_line() {
    let ended = run(&["--version"]).await;
    assert_eq!((ended.code, ended.out), (Some(0), format!("bitnetd {}\n", env!("CARGO_PKG_VERSION"))));
}

#[tokio::test]
async fn wrong_usage_is_one_line_and_exit_code_2() {
    for args in [&[][..], &["fly"], &["serve", "--nonsense"], &["generate"], &["logits", "--tokens", "x"]] {
        let ended = run(args).await;
        assert_eq!((ended.code, ended.out.as_str()), (Some(2), ""), "{ended:?}");
        assert!(ended.error_line().contains("--help"), "{ended:?}");
    }
    for (args, meant) in [(&["srve"][..], "'serve'"), (&["ask", "--scoket", "a", "b"], "'--socket'")] {
        let ended = run(args).await;
        assert!(ended.error_line().contains(meant), "{ended:?}");
    }
}

#[tokio::test]
async fn generate_gives_the_reference_answers_without_a_daemon() {
    for (case, threads) in cases().iter().skip(20).zip(["1", "2", "3"]) {
        let ended = run(&["generate", "--threads", threads, &case.prompt]).await;
        let line = format!("{}\n", case.answer);
        assert_eq!((ended.code, ended.out, ended.err), (Some(0), line, String::new()));
        let ended = run(&["generate", "--threads", threads, "--json", &case.prompt]).await;
        let said = ended.json();
        assert_eq!(
            (&said["text"], &said["prompt_tokens"]),
            (&case.answer.clone().into(), &case.prompt_tokens.into())
        );
        assert_eq!(said["finish_reason"], case.finish_reason.as_str());
    }
}

#[tokio::test]
async fn generate_raw_continues_the_text_as_the_reference_does() {
    for name in ["b158-tiny", "bitnet-tiny", "llama-tiny"] {
        let file = data(&format!("reference/{name}.i2_s.gguf"));
        // What case 0 of each file has as its tokens.
        let prompt = "turn on the kitchen lights";
        let args = ["generate", "--model", text(&file), "--raw", "--max-tokens", "16", "--json", prompt];
        let said = run(&args).await.json();
        let reference = std::fs::read(data(&format!("reference/{name}.json"))).expect("reference data");
        let reference: Value = serde_json::from_slice(&reference).expect("reference data");
        assert_eq!(said["tokens"], reference["cases"][0]["greedy_16"], "{name}");
        let begun = run(&[&args[..], &["--bos"]].concat()).await.json();
        assert_eq!(begun["prompt_tokens"], 6, "{begun}");
    }
}

#[tokio::test]
async fn generate_heeds_its_limits() {
    let ended = run(&["generate", "--json", "--max-tokens", "2", "turn on the light"]).await;
    let said = ended.json();
    assert_eq!((&said["completion_tokens"], &said["finish_reason"]), (&2.into(), &"length".into()));
    let hot = |seed| ["generate", "--temperature", "10", "--max-tokens", "20", "--seed", seed, "go"];
    let (one, same, other) = (run(&hot("1")).await, run(&hot("1")).await, run(&hot("2")).await);
    assert_eq!(one.out, same.out);
    assert_ne!(one.out, other.out);
    let cut = run(&["generate", "--max-tokens", "2", "turn", "on", "the light"]).await;
    assert_eq!((cut.code, cut.error_line()), (Some(5), "bitnetd: [cut off: max_tokens of 2]"));
    let with_system = run(&["generate", "--json", "--system", "Be brief.", "turn on the light"]).await.json();
    let without = run(&["generate", "--json", "turn on the light"]).await.json();
    assert!(with_system["prompt_tokens"].as_u64() > without["prompt_tokens"].as_u64(), "{with_system}");
    let raw = run(&["generate", "--raw", "--json", "turn on the light"]).await.json();
    let template = run(&["generate", "--json", "turn on the light"]).await.json();
    assert!(raw["prompt_tokens"].as_u64() < template["prompt_tokens"].as_u64(), "{raw}");
    let long = run(&["generate", &"light ".repeat(600)]).await;
    assert_eq!(long.code, Some(5), "{long:?}");
}

#[derive(Deserialize)]
struct Tokens {
    text: String,
    ids_with_special: Vec<u32>,
    ids_plain: Vec<u32>,
}

#[tokio::test]
async fn tokenize_gives_the_reference_ids() {
    let file = std::fs::read_to_string(data("reference/tokenizer.cases.json")).expect("reference data");
    let cases: Vec<Tokens> = serde_json::from_str(&file).expect("a list of cases");
    let special = |case: &&Tokens| case.ids_plain != case.ids_with_special;
    let plain = |case: &&Tokens| case.ids_plain == case.ids_with_special;
    let picked = cases.iter().filter(special).take(3).chain(cases.iter().filter(plain).step_by(6));
    for case in picked {
        // On standard input: no argument may begin with a dash or hold a zero.
        let ended = run_with_input(&["tokenize", "-"], &case.text).await;
        assert_eq!(ended.json(), serde_json::json!(case.ids_plain), "{:?}", case.text);
        assert_eq!(ended.out.lines().count(), 1);
        let ended = run_with_input(&["tokenize", "--special"], &case.text).await;
        assert_eq!(ended.json(), serde_json::json!(case.ids_with_special), "{:?}", case.text);
    }
    let ended = run(&["tokenize", "turn on the kitchen lights"]).await;
    assert_eq!(ended.out, "[671,369,314,1319,735]\n");
}

#[derive(Deserialize)]
struct Reference {
    cases: Vec<Pass>,
}

#[derive(Deserialize)]
struct Pass {
    tokens: Vec<u32>,
    logits_file: String,
    logits_shape: [usize; 2],
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[tokio::test]
async fn logits_are_the_reference_logits() {
    let (folder, model) = (Folder::new(), data("reference/b158-tiny.i2_s.gguf"));
    let file = std::fs::read_to_string(data("reference/b158-tiny.json")).expect("reference data");
    let reference: Reference = serde_json::from_str(&file).expect("reference data");
    for Pass { tokens, logits_file, logits_shape: [rows, vocab] } in reference.cases {
        let out = folder.path("logits");
        let list = tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let args = ["logits", "--model", text(&model), "--tokens", &list, "--out", text(&out)];
        let ended = run(&args).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let got = std::fs::read(&out).expect("just written");
        assert_eq!(got.len(), 4 * rows * vocab);
        let want = floats(&std::fs::read(data("reference").join(logits_file)).expect("reference data"));
        let largest = want.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let worst = floats(&got).iter().zip(&want).fold(0.0f32, |worst, (x, y)| worst.max((x - y).abs()));
        assert!(worst <= 1e-3 * largest, "{worst} of {largest}");
    }
}

#[tokio::test]
async fn bench_measures_both_speeds() {
    let sizes = ["--prompt-tokens", "16", "--generate-tokens", "8", "--repeat", "2", "--threads", "1"];
    let ended = run(&[&["bench", "--json"][..], &sizes].concat()).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let said = ended.json();
    for speed in ["prefill", "decode", "memory_bandwidth", "arithmetic"] {
        let [min, median, max] = ["min", "median", "max"].map(|key| said[speed][key].as_f64().expect(key));
        assert!(0.0 < min && min <= median && median <= max, "{said}");
    }
    assert_eq!((&said["prompt_tokens"], &said["threads"]), (&16.into(), &1.into()));
    assert!(said["bytes_per_token"].as_u64().is_some_and(|bytes| bytes > 0), "{said}");
    assert!(said["bandwidth_share"].as_f64().is_some_and(|share| share > 0.0), "{said}");
    let number = |of: &serde_json::Value| of.as_f64().unwrap_or_else(|| panic!("{said}"));
    let bytes = number(&said["bytes_per_token"]) + number(&said["cache_bytes_per_token"]);
    let expected = number(&said["decode"]["median"]) * bytes;
    assert!((number(&said["read_speed"]) / expected - 1.0).abs() < 1e-9, "{said}");
    assert!(number(&said["cache_bytes_per_token"]) > 0.0, "{said}");
    assert!(number(&said["arithmetic_share"]) > 0.0 && number(&said["multiply_speed"]) > 0.0, "{said}");
    assert!(number(&said["peak_memory"]) > bytes, "the weights were resident: {said}");
    let table = run(&[&["bench"][..], &sizes].concat()).await;
    for line in [
        "prefill",
        "decode",
        "bytes per token",
        "of the memory's speed",
        "of the kernel alone",
        "outside the kernels",
    ] {
        assert!(table.out.contains(line), "{line}: {table:?}");
    }
    let long = run(&["bench", "--prompt-tokens", "500", "--generate-tokens", "500"]).await;
    assert_eq!(long.code, Some(2), "{long:?}");
}

#[tokio::test]
async fn bench_measures_when_the_numbers_of_threads_are_found() {
    let bench = async |prompt: &str, generate: &str| {
        let sizes = ["--prompt-tokens", prompt, "--generate-tokens", generate, "--repeat", "1"];
        run(&[&["bench", "--json"][..], &sizes].concat()).await.json()["threads_found"].clone()
    };
    // Some numbers take more answers than one of such a size.
    if !is_emulated() {
        let found = bench("48", "24").await;
        assert_eq!(found["is_open"], false, "{found}");
        assert!(found["decode"].as_u64() >= Some(1) && found["prefill"].as_u64() >= Some(1), "{found}");
    }
    let short = bench("4", "24").await;
    assert_eq!(short["is_open"], false, "four tokens are read as decoding goes: {short}");
}

#[tokio::test]
async fn bench_reports_the_time_of_a_token_by_operation() {
    for threads in ["1", "2"] {
        let [prompt, repeat] = if is_emulated() { ["16", "1"] } else { ["64", "3"] };
        let sizes =
            ["--prompt-tokens", prompt, "--generate-tokens", "8", "--repeat", repeat, "--threads", threads];
        let ended = run(&[&["bench", "--json"][..], &sizes].concat()).await;
        let said = ended.json();
        for passes in ["prefill_parts", "decode_parts"] {
            let part = |name: &str| said[passes][name].as_f64().expect(name);
            for name in ["attention", "feed_forward", "head", "between", "text"] {
                assert!(0.0 < part(name) && part(name) < part("token"), "{name}: {said}");
            }
            assert!(0.0 < part("outside_kernels") && part("outside_kernels") < 1.0, "{said}");
        }
        assert_eq!(said["hand_over"].as_f64().is_some_and(|time| time > 0.0), threads == "2", "{said}");
        // A starved caller waits for nobody in the few passes of the prompt, but not in all of those of the answer too.
        let barriers = |passes: &str| said[passes]["barriers"].as_f64().expect("a number");
        let waited = barriers("prefill_parts") + barriers("decode_parts");
        assert_eq!(waited > 0.0, threads == "2", "the caller waits for others where there are some: {said}");
    }
}

/// What `doctor` says of the broker.
async fn diagnosis(folder: &Folder, settings: &str) -> Value {
    let ended = run(&["doctor", "--json", "--config", text(&folder.config(settings))]).await;
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{ended:?}");
    ended.json()
}

#[tokio::test]
async fn doctor_tests_the_kernels_and_finds_the_broker() {
    let (folder, broker) = (Folder::new(), Mosquitto::start().await);
    let said = diagnosis(&folder, &linked(broker.port)).await;
    let kernels = said["kernels"].as_array().expect("a list");
    assert!(kernels.iter().all(|kernel| kernel["self_test"] == "ok"), "{said}");
    assert!(kernels.iter().any(|kernel| kernel["name"] == said["kernel"]), "{said}");
    assert!(said["processors"].as_u64().is_some_and(|processors| processors > 0), "{said}");
    assert!(said["big_processors"].as_u64().is_some_and(|big| big > 0), "{said}");
    assert!(said["big_processors"].as_u64() <= said["processors"].as_u64(), "{said}");
    assert!(said["memory"]["usable_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{said}");
    assert_eq!(said["broker"]["reachable"], true, "{said}");
    let said = diagnosis(&folder, &linked(free_port())).await;
    assert_eq!(said["broker"]["reachable"], false, "{said}");
    assert!(diagnosis(&folder, "").await["broker"].is_null());
}

#[tokio::test]
async fn doctor_lists_what_is_found_and_a_remedy_for_the_rest() {
    let folder = Folder::new();
    let powers = |said: &Value| -> Vec<String> {
        let sensors = said["sensors"].as_array().expect("a list").iter();
        let powers = sensors.filter(|sensor| sensor["name"] == "power");
        powers.map(|sensor| format!("{} {}", sensor["method"], sensor["scope"])).collect()
    };
    let without = diagnosis(&folder, "").await;
    let reasons = without["missing"].as_array().expect("a list");
    let is_missing = reasons.iter().any(|reason| text_of(reason).contains("power"));
    assert_eq!(is_missing, powers(&without).is_empty(), "{without}");
    let settings = "[telemetry]\nidle_watts = 3\nfull_watts = 8\n";
    let with = diagnosis(&folder, settings).await;
    assert_eq!(powers(&with).last().map(String::as_str), Some("\"estimated\" \"board\""), "{with}");
    let ended = run(&["doctor", "--config", text(&folder.config(settings))]).await;
    assert!(ended.out.contains("power: ESTIMATED, scope board, from telemetry.idle_watts"), "{ended:?}");
}

#[tokio::test]
async fn doctor_judges_a_model_by_boards_bandwidth_and_its_measured_speed() {
    let folder = Folder::new();
    let model = data("reference/b158-tiny.i2_s.gguf");
    let config = folder.config("[model]\ncontext = 64\n");
    for named in ["built-in", text(&model)] {
        let ended = run(&["doctor", "--json", "--config", text(&config), "--model", named]).await;
        assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{ended:?}");
        let judged = ended.json()["model"].clone();
        assert_eq!((&judged["file"], &judged["fits"]), (&json!(named), &json!(true)), "{judged}");
        let boards = judged["boards"].as_array().expect("a list");
        assert_eq!(boards.len(), 8, "{judged}");
        assert!(boards.iter().all(|board| board["fits"] == true), "{judged}");
        let speed = &judged["speed"];
        let number = |key: &str| speed[key].as_f64().unwrap_or_else(|| panic!("{key}: {speed}"));
        assert!(number("tokens_per_second") > 0.0 && number("bytes_per_token") > 0.0, "{speed}");
        let expected = number("memory_bandwidth") / number("bytes_per_token");
        assert!((number("expected_tokens_per_second") / expected - 1.0).abs() < 1e-9, "{speed}");
        let advice = judged["advice"].as_array().expect("a list");
        let gains: Vec<f64> =
            advice.iter().map(|piece| piece["estimated_gain"].as_f64().unwrap_or(0.0)).collect();
        assert!(gains.is_sorted_by(|a, b| a >= b), "{judged}");
    }
    let ended = run(&["doctor", "--config", text(&config), "--model", "built-in"]).await;
    for shown in
        ["\nmodel          built-in", "Raspberry Pi 5, 16 GB: yes", " tokens/s ESTIMATED: ", "\nmeasured  "]
    {
        assert!(ended.out.contains(shown), "{shown}: {ended:?}");
    }
    let without = run(&["doctor", "--json", "--config", text(&config)]).await;
    assert!(without.json()["model"].is_null());
}

#[tokio::test]
async fn doctor_fails_for_a_model_that_cannot_be_used_and_still_says_which_board_has_the_memory() {
    let folder = Folder::new();
    let missing = run(&["doctor", "--config", text(&folder.config("")), "--model", "/no/such.gguf"]).await;
    assert_eq!((missing.code, missing.out.as_str()), (Some(3), ""), "{missing:?}");
    assert!(missing.error_line().contains("/no/such.gguf"), "{missing:?}");
    let small = folder.config("[budget]\nmemory_mb = 9\n");
    let ended = run(&["doctor", "--json", "--config", text(&small), "--model", "built-in"]).await;
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(ended.error_line().contains("the model does not fit"), "{ended:?}");
    let judged = ended.json()["model"].clone();
    assert_eq!((&judged["fits"], &judged["speed"]), (&json!(false), &Value::Null), "{judged}");
    assert_eq!(judged["boards"][0]["fits"], true, "{judged}");
}

fn text_of(value: &Value) -> &str {
    value.as_str().expect("a text")
}
