//! The commands that look into a model file.

use crate::daemon::run;
use crate::{Folder, data, text};
use serde_json::{Value, json};

#[tokio::test]
async fn perplexity_is_low_for_a_text_the_model_was_trained_on_and_high_for_another() {
    let folder = Folder::new();
    let known = folder.write("known", "{\"intent\":\"HassTurnOn\",\"slots\":{\"domain\":\"light\"}}\n");
    let other = folder.write("other", "Le vieil homme regarda la mer par la fenêtre.\n");
    let mut said = Vec::new();
    for file in [&known, &other] {
        let ended = run(&["perplexity", "--json", text(file)]).await;
        assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{ended:?}");
        let json = ended.json();
        assert_eq!(json["chance"], 2048);
        assert!(json["tokens"].as_u64().is_some_and(|tokens| tokens > 5), "{json}");
        said.push(json["perplexity"].as_f64().expect("a number"));
    }
    assert!(1.0 < said[0] && said[0] * 100.0 < said[1], "{said:?}");
    let line = run(&["perplexity", text(&known)]).await;
    assert!(line.out.starts_with("perplexity ") && line.out.lines().count() == 1, "{line:?}");
}

#[tokio::test]
async fn perplexity_refuses_what_is_no_text() {
    let folder = Folder::new();
    let empty = folder.write("empty", "");
    let binary = folder.path("binary");
    std::fs::write(&binary, b"abc\xff\xfe").expect("a temporary folder");
    let device = std::path::PathBuf::from("/dev/zero");
    for (file, part) in
        [(empty, "longer"), (binary, "byte 3"), (folder.path("missing"), "No such file"), (device, "regular")]
    {
        let ended = run(&["perplexity", text(&file)]).await;
        assert_eq!(ended.code, Some(2), "{ended:?}");
        let line = ended.error_line();
        assert!(line.contains(part) && line.contains(text(&file)), "{ended:?}");
    }
}

#[tokio::test]
async fn inspect_shows_the_contents_of_a_file_and_the_boards_that_it_fits() {
    let model = data("reference/llama-tiny.tq2_0.gguf");
    let said = run(&["inspect", "--json", text(&model)]).await.json();
    assert_eq!(said["problem"], serde_json::Value::Null, "{said}");
    assert_eq!(said["model"]["architecture"], "llama");
    let of = |kind: &str| {
        let types = said["types"].as_array().expect("a list").clone();
        types.into_iter().find(|count| count["type"] == kind).expect("a type of the file")["tensors"].clone()
    };
    assert_eq!((of("TQ2_0"), of("F16")), (14.into(), 2.into()), "{said}");
    assert_eq!(said["tensors"].as_array().map(Vec::len), Some(21));
    let boards = said["memory"]["boards"].as_array().expect("a list");
    let names: Vec<&str> = boards.iter().filter_map(|board| board["name"].as_str()).collect();
    assert_eq!(names, ["512 MB", "1 GB", "2 GB", "4 GB", "8 GB", "this machine"]);
    assert!(boards.iter().all(|board| board["fits"] == true), "{said}");
    let page = run(&["inspect", "--tensors", text(&model)]).await;
    for part in ["tokenizer.ggml.tokens", "[2048 texts]", "blk.1.ffn_down.weight", "512 MB"] {
        assert!(page.out.contains(part), "{part}: {page:?}");
    }
}

#[tokio::test]
async fn inspect_plans_structured_output_for_all_requests_at_the_same_time() {
    let model = data("reference/llama-tiny.tq2_0.gguf");
    for parallel in [1, 8] {
        let count = parallel.to_string();
        let said = run(&["inspect", "--json", "--parallel", &count, text(&model)]).await.json();
        let memory = &said["memory"];
        let of = |key: &str| memory[key].as_u64().expect("a number");
        let expected = of("token_trie") + (parallel + 1) * of("per_grammar");
        for board in memory["boards"].as_array().expect("a list") {
            let planned = ["parallel", "structured_output"].map(|key| board[key].as_u64());
            assert_eq!(planned, [Some(parallel), Some(expected)], "{board}");
        }
    }
    let page = run(&["inspect", text(&model)]).await;
    assert!(page.out.contains(" for each request at the same time and one more"), "{page:?}");
}

#[tokio::test]
async fn inspect_plans_with_another_form_of_head_and_cache() {
    let model = data("reference/llama-tiny.tq2_0.gguf");
    let inspect = async |options: &[&str]| run(&[&["inspect", text(&model)][..], options].concat()).await;
    let plain = inspect(&["--json"]).await.json();
    let head = |form: &str, image: usize| {
        let mut head = plain["head"].clone();
        (head["form"], head["image_bytes"]) = (form.into(), image.into());
        head
    };
    assert_eq!((&plain["head"], &plain["head"]["type"]), (&head("f16", 0), &"F16".into()), "{plain}");
    let said = inspect(&["--json", "--head", "screened", "--kv-cache", "f32"]).await.json();
    let image = said["head"]["image_bytes"].as_u64().expect("a number");
    assert!(0 < image && image < said["head"]["file_bytes"].as_u64().expect("a number"), "{said}");
    assert_eq!(said["head"], head("screened", image as usize));
    let of = |said: &serde_json::Value, key: &str| said["memory"][key].as_u64().expect("a number");
    assert_eq!(of(&said, "cache_per_token"), 2 * of(&plain, "cache_per_token"));
    assert_ne!(of(&said, "mapped"), of(&plain, "mapped"));
    let page = inspect(&["--head", "screened"]).await;
    assert!(page.out.contains("\nhead  screened: 4 bits of all rows, "), "{page:?}");
    let page = inspect(&["--head", "q8"]).await;
    assert!(page.out.contains("\nhead  q8: written again, "), "{page:?}");
    let page = inspect(&[]).await;
    assert!(page.out.contains("\nhead  f16: as the file has it, F16, "), "{page:?}");
}

#[tokio::test]
async fn inspect_measures_the_layouts_when_asked() {
    let said = run(&["inspect", "--check", "--json"]).await.json();
    assert_eq!(
        (&said["check"]["trained"], &said["check"]["layout"]),
        (&true.into(), &"128".into()),
        "{said}"
    );
    let figures = said["check"]["layouts"].as_array().expect("a list");
    let perplexity = |at: usize| figures[at]["perplexity"].as_f64().expect("a number");
    assert!(perplexity(0) < 2.0 && perplexity(1) > 1000.0 && perplexity(2) > 1000.0, "{said}");
    let tiny = run(&["inspect", "--check", text(&data("reference/b158-tiny.i2_s.gguf"))]).await;
    assert!(tiny.out.contains("never trained"), "{tiny:?}");
}

#[tokio::test]
async fn inspect_shows_a_file_that_cannot_be_run_and_the_reason() {
    let folder = Folder::new();
    let model = std::fs::read(data("reference/b158-tiny.i2_s.gguf")).expect("data");
    let (old, new) = (b"bitnet-b1.58".as_slice(), b"not-an-arch!");
    let at = model.windows(old.len()).rposition(|bytes| bytes == old);
    let first = model.windows(old.len()).position(|bytes| bytes == old).expect("the architecture");
    assert!(at.is_some_and(|at| at > first), "its keys have the name too");
    let mut other = model;
    other[first..first + new.len()].copy_from_slice(new);
    let file = folder.path("m.gguf");
    std::fs::write(&file, other).expect("a temporary folder");
    let ended = run(&["inspect", text(&file)]).await;
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(ended.out.contains("not-an-arch!") && ended.error_line().contains("not supported"), "{ended:?}");
    let mut cut = std::fs::read(data("reference/b158-tiny.i2_s.gguf")).expect("data");
    let name = b"blk.1.ffn_up.weight";
    let at = cut.windows(name.len()).position(|bytes| bytes == name).expect("a tensor of the model");
    cut[at + 4] = b'9';
    std::fs::write(&file, cut).expect("a temporary folder");
    let ended = run(&["inspect", "--json", text(&file)]).await;
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(ended.json()["problem"].as_str().is_some_and(|said| said.contains("blk.1.ffn_up")), "{ended:?}");
    let none = run(&["inspect", text(&folder.write("text", "no model"))]).await;
    assert_eq!((none.code, none.out.as_str()), (Some(3), ""), "{none:?}");
}

#[tokio::test]
async fn eval_scores_the_answers_to_ones_own_cases() {
    let folder = Folder::new();
    let answer = r#"{"intent":"HassTurnOn","slots":{"area":"kitchen","domain":"light"}}"#;
    let other = answer.replace("TurnOn", "TurnOff");
    let ask = |judge: Value| {
        let mut case = json!({"prompt": "turn on the kitchen light"});
        case.as_object_mut().expect("an object").extend(judge.as_object().expect("an object").clone());
        format!("{case}\n")
    };
    let cases = [
        ask(json!({"json": serde_json::from_str::<Value>(answer).expect("JSON")})),
        ask(json!({"contains": ["HassTurnOn", "kitchen"], "name": "by words"})),
        ask(json!({"regex": "^\\{.*\\}$"})),
        ask(json!({"exact": other, "name": "never \u{1b}[31m right"})),
        ask(json!({"choices": ["{\"intent\":\"HassTurnOff\"", "{\"intent\":\"HassTurnOn\""], "answer": 1})),
    ];
    let file = folder.write("cases.jsonl", &cases.concat());
    let ended = run(&["eval", "--json", text(&file)]).await;
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{ended:?}");
    let said = ended.json();
    let right: Vec<bool> =
        said["results"].as_array().expect("a list").iter().map(|result| result["right"] == true).collect();
    assert_eq!(right, [true, true, true, false, true], "{said}");
    assert_eq!((&said["cases"], &said["right"]), (&json!(5), &json!(4)));
    assert_eq!(said["kinds"]["exact"], json!({"cases": 1, "right": 0}));
    let log_probabilities = &said["results"][4]["log_probabilities"];
    assert!(log_probabilities[1].as_f64() > log_probabilities[0].as_f64(), "{said}");
    let table = run(&["eval", text(&file)]).await.out;
    assert!(table.contains("all             4 of      5   80.0 %"), "{table}");
    assert!(table.contains("wrong: line 4 (never ") && !table.contains('\u{1b}'), "{table}");
}

#[tokio::test]
async fn eval_names_the_line_that_is_no_case() {
    let folder = Folder::new();
    let file = folder.write("cases.jsonl", "{\"prompt\":\"a\",\"exact\":\"b\"}\n{\"prompt\":\"a\"}\n");
    let empty = folder.write("empty.jsonl", "\n");
    for (file, part) in
        [(&file, "line 2: one of exact"), (&empty, "no case"), (&folder.path("none"), "No such file")]
    {
        let ended = run(&["eval", text(file)]).await;
        assert_eq!(ended.code, Some(2), "{ended:?}");
        let line = ended.error_line();
        assert!(line.contains(part) && line.contains(text(file)), "{ended:?}");
    }
}

#[tokio::test]
async fn bench_times_ones_own_prompts_on_three_levels() {
    let folder = Folder::new();
    let text_file = folder.write("prompts.txt", "turn on the kitchen light\n\nclose the blinds\n");
    let ended = run(&["bench", "--json", "--prompts", text(&text_file), "--levels", "--runs", "2"]).await;
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{ended:?}");
    let said = ended.json();
    let levels = said["levels"].as_array().expect("a list");
    let names: Vec<&Value> = levels.iter().map(|level| &level["level"]).collect();
    assert_eq!(names, ["baseline", "optimised", "aggressive"]);
    for level in levels {
        assert_eq!((&level["requests"], &level["answered"]), (&json!(4), &json!(4)), "{said}");
        for figure in ["mean_ms", "requests_per_minute", "tokens_per_second", "prompt_tokens_per_second"] {
            assert!(level[figure].as_f64().is_some_and(|figure| figure > 0.0), "{figure}: {said}");
        }
    }
    assert_eq!((&levels[0]["same_answers"], &levels[1]["same_answers"]), (&json!(4), &json!(4)), "{said}");
    let lines = folder.write("prompts.jsonl", "{\"prompt\":\"turn on the light\",\"max_tokens\":3}\n");
    let csv = run(&["bench", "--csv", "--prompts", text(&lines)]).await.out;
    let rows: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    assert!(rows.len() == 2 && rows[0].len() == rows[1].len() && rows[1][0] == "chosen", "{csv}");
    let table = run(&["bench", "--prompts", text(&lines)]).await.out;
    assert!(table.contains("1 prompts, each 1 times") && table.contains("\nchosen "), "{table}");
    // One that does not fit into the context is counted, and the others are answered.
    let long = folder.write("long.txt", &format!("{}\nclose the blinds\n", "light ".repeat(20_000)));
    let said = run(&["bench", "--json", "--prompts", text(&long)]).await.json();
    assert_eq!(said["levels"][0]["success_percent"], 50.0, "{said}");
    assert!(said["levels"][0]["error"].is_string(), "{said}");
    let wrong = folder.write("wrong.jsonl", "{\"prompt\":\"a\"}\n{\"promt\":\"b\"}\n");
    let ended = run(&["bench", "--prompts", text(&wrong)]).await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.error_line().contains("line 2: unknown field `promt`"), "{ended:?}");
}
