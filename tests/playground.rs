//! The playground as a process: its interface over a socket, and its page in a browser.
//!
//! The browser is Chromium, driven through `chromedriver`: both must be on the path.

#[path = "common/colours.rs"]
mod colours;
mod common;

use colours::write_blue_and_red;
use common::{command, done, one_error};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::{TempDir, tempdir};

/// A running server. It is killed at the end of the test, unless it has ended before.
struct Server {
    child: Child,
    /// Such as `127.0.0.1:1998`.
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts the playground in the working directory `place`, on a free port.
fn start(place: &Path) -> Server {
    start_with(place, &[])
}

/// Starts the playground with the given runs, too.
fn start_with(place: &Path, runs: &[&str]) -> Server {
    started(command(place, "playground").args(["--port", "0"]).args(runs))
}

/// Starts the playground with `command`.
fn started(command: &mut Command) -> Server {
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.split("http://").nth(1).and_then(|rest| rest.split('/').next());
    let address = address.unwrap_or_else(|| panic!("the playground said {line:?}")).to_string();
    Server { child, address }
}

/// A folder with a run of lenet that was trained for a moment.
fn place_with_lenet() -> TempDir {
    let place = tempdir().unwrap();
    done(&place, "playground", "lenet --train-limit 200 --epochs 1 --quiet");
    place
}

/// Sends a request with these further headers, and returns status and body.
fn exchange(address: &str, request: &str, headers: &str, body: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    write!(stream, "{request} HTTP/1.1\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n")
        .unwrap();
    // Fails if the server refuses the body before it has read it.
    let _ = stream.write_all(body);
    let mut reader = BufReader::new(stream);
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") {
        assert!(reader.read_until(b'\n', &mut head).unwrap() > 0, "{request}: the answer has no end");
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let mut body = vec![0; length.map_or(0, |length| length.trim().parse().unwrap())];
    reader.read_exact(&mut body).unwrap();
    (head[9..12].parse().unwrap(), String::from_utf8(body).unwrap())
}

/// Sends a request as the page does, and returns status and answer.
fn ask(server: &Server, request: &str, body: &[u8]) -> (u16, Value) {
    let host = format!("Host: {0}\r\nOrigin: http://{0}\r\n", server.address);
    let (status, text) = exchange(&server.address, request, &host, body);
    (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{request}: {status}: {text}")))
}

/// Checks that the request fails with `status` and a line with all `parts`.
#[track_caller]
fn fails(server: &Server, request: &str, body: &[u8], status: u16, parts: &[&str]) {
    let (found, answer) = ask(server, request, body);
    let error = answer["error"].as_str().unwrap_or_default();
    assert!(
        found == status && !error.is_empty() && error.lines().count() == 1,
        "{request}: {found} {answer}"
    );
    parts.iter().for_each(|part| assert!(error.contains(part), "{part:?} is not in {error}"));
}

/// A PNG file of a white square with a vertical black bar.
fn bar() -> Vec<u8> {
    let picture = image::GrayImage::from_fn(280, 280, |x, y| {
        image::Luma([if (130..150).contains(&x) && (40..240).contains(&y) { 0 } else { 255 }])
    });
    let mut file = std::io::Cursor::new(vec![]);
    picture.write_to(&mut file, image::ImageFormat::Png).unwrap();
    file.into_inner()
}

#[test]
fn a_model_answers_a_picture_and_mistakes_are_refused_in_a_line() {
    let place = place_with_lenet();
    let server = start(place.path());
    let (status, page) = exchange(&server.address, "GET /", &format!("Host: {}\r\n", server.address), b"");
    assert!(status == 200 && page.contains("id=\"canvas\""), "{status}");
    let (_, state) = ask(&server, "GET /api/state", b"");
    assert_eq!((&state[0]["name"], &state[0]["runs"][0]["name"]), (&json!("lenet"), &json!("1")));

    let (status, answer) = ask(&server, "POST /api/ask/lenet/1", &bar());
    assert_eq!((status, answer["classes"].as_array().unwrap().len()), (200, 10));
    let total: f64 = answer["probabilities"].as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).sum();
    assert!((total - 1.0).abs() < 1e-4, "{answer}");
    // The bar is in the middle of the network's input.
    let input = answer["input"]["maps"][0].as_str().unwrap();
    assert_eq!((&input[2 * (14 * 28 + 14)..][..2], &input[..2]), ("ff", "00"));
    let stages = answer["stages"].as_array().unwrap();
    let shapes =
        stages.iter().map(|stage| (stage["maps"].as_array().unwrap().len(), stage["height"].as_u64()));
    assert_eq!(shapes.collect::<Vec<_>>(), [(6, Some(14)), (16, Some(5))]);

    fails(&server, "POST /api/ask/lenet/1", b"no picture", 400, &["the picture", "PNG or JPEG"]);
    fails(&server, "POST /api/ask/lenet/1", &vec![0; (1 << 20) + 1], 413, &["1024 KiB"]);
    fails(&server, "POST /api/ask/lenet/2", &bar(), 400, &["runs/lenet/2", "no such run"]);
    fails(&server, "POST /api/ask/nosuch/1", &bar(), 404, &["nosuch"]);
    fails(&server, "POST /api/train/nosuch", b"", 404, &["nosuch"]);
    fails(&server, "POST /api/stop", b"", 409, &["no training"]);
    fails(&server, "GET /api/stop", b"", 405, &["such a request"]);
    fails(&server, "GET /nosuch", b"", 404, &["nothing"]);
    fails(&server, "POST /api/ask/lenet/one", &bar(), 404, &["one", "no such run"]);
    fails(&server, "GET /api/digit/one", b"", 400, &["one"]);
}

#[test]
fn a_residual_network_reads_a_picture_in_colour() {
    let place = tempdir().unwrap();
    write_blue_and_red(&place.path().join("data"));
    let arguments = "resnet --dataset image-folder --data-dir data --epochs 1 --batch-size 4 --quiet";
    // There may be notes about so few images.
    let output = command(&place, "playground").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let server = start(place.path());
    let (status, answer) = ask(&server, "POST /api/ask/resnet/1", &bar());
    assert_eq!((status, &answer["classes"]), (200, &json!(["blue", "red"])));
    assert_eq!((&answer["channels"], answer["input"]["maps"].as_array().unwrap().len()), (&json!(3), 3));
    assert!(!answer["stages"].as_array().unwrap().is_empty());
}

#[test]
fn runs_in_other_folders_are_offered_if_they_are_named() {
    let place = tempdir().unwrap();
    done(&place, "playground", "lenet --train-limit 200 --epochs 1 --out mine --quiet");
    let server = start_with(place.path(), &["mine"]);
    let (_, state) = ask(&server, "GET /api/state", b"");
    let run = &state[0]["runs"][0];
    assert_eq!((&run["name"], &run["id"]), (&json!("mine"), &json!("given-0")), "{state}");
    assert_eq!(ask(&server, "POST /api/ask/lenet/given-0", &bar()).0, 200);
    for request in ["POST /api/ask/lenet/given-1", "POST /api/ask/mlp/given-0"] {
        fails(&server, request, &bar(), 404, &["no such run"]);
    }
    let output = command(&place, "playground").arg("nowhere").output().unwrap();
    one_error(&output, 1, &["nowhere", "expected the folder of a run of lenet"]);
}

#[test]
fn requests_of_other_pages_and_for_other_hosts_are_refused() {
    let place = tempdir().unwrap();
    let server = start(place.path());
    let (address, port) = (&server.address, server.address.rsplit(':').next().unwrap());
    let status = |headers: &str| exchange(address, "POST /api/stop", headers, b"").0;
    // Allowed, although there is nothing to stop.
    for host in [address.clone(), format!("localhost:{port}"), format!("[::1]:{port}")] {
        assert_eq!(status(&format!("Host: {host}\r\n")), 409, "{host}");
        assert_eq!(status(&format!("Host: {host}\r\nOrigin: http://{host}\r\n")), 409, "{host}");
    }
    for host in
        [format!("example.com:{port}"), "127.0.0.1".into(), "127.0.0.1:1".into(), format!("10.0.0.1:{port}")]
    {
        assert_eq!(status(&format!("Host: {host}\r\nOrigin: http://{host}\r\n")), 403, "{host}");
    }
    assert_eq!(status(""), 403);
    for origin in ["http://example.com", "null", "https://127.0.0.1", &format!("http://localhost:{port}")] {
        assert_eq!(status(&format!("Host: {address}\r\nOrigin: {origin}\r\n")), 403, "{origin}");
    }
}

#[test]
fn a_port_in_use_and_an_unknown_option_are_errors_in_a_line() {
    let place = tempdir().unwrap();
    let server = start(place.path());
    let port = server.address.rsplit(':').next().unwrap();
    let output = command(&place, "playground").args(["--port", port]).output().unwrap();
    one_error(&output, 1, &[port, "uses this port", "--port"]);
    let output = command(&place, "playground").args(["--port", "many"]).output().unwrap();
    one_error(&output, 2, &["--port", "0 to 65535"]);
    let output = command(&place, "playground").args(["--port", "-1"]).output().unwrap();
    one_error(&output, 2, &["'-1'", "0 to 65535"]);
}

#[test]
fn texts_are_answered_and_too_long_ones_refused() {
    let place = tempdir().unwrap();
    done(&place, "playground", "fasttext --train-limit 2000 --epochs 1 --quiet");
    done(&place, "playground", "rnn --train-limit 200 --epochs 1 --hidden 8 --quiet");
    done(&place, "playground", "birnn --train-limit 200 --epochs 1 --hidden 8 --quiet");
    let server = start(place.path());
    let about = |text: &str| json!({ "text": text }).to_string().into_bytes();
    for program in ["fasttext", "rnn"] {
        let request = format!("POST /api/ask/{program}/1");
        let (status, answer) = ask(&server, &request, &about("a dull , zzyzx film"));
        assert_eq!((status, &answer["words"][3]), (200, &json!("zzyzx")), "{answer}");
        assert_eq!(answer["known"], json!([true, true, true, false, true]), "{answer}");
        let phrases = answer["phrases"].as_array().unwrap();
        assert!(
            phrases.iter().all(|phrase| phrase["contribution"].is_f64()) && phrases.len() >= 4,
            "{answer}"
        );
        assert_eq!(answer["attributed"], json!(program == "fasttext"));
        fails(&server, &request, &about(&"a".repeat(1001)), 400, &["1001", "1000"]);
        fails(&server, &request, &about(&"a ".repeat(201)), 400, &["201", "200"]);
        fails(&server, &request, b"{\"text\": 1}", 400, &["not as expected"]);
        fails(&server, &request, b"{", 400, &["not as expected"]);
    }
    let (status, answer) = ask(&server, "POST /api/ask/birnn/1", &about("Anna met Rose Keller."));
    assert_eq!((status, answer["words"].as_array().unwrap().len()), (200, 5), "{answer}");
    assert_eq!(answer["tags"].as_array().unwrap().len(), 5, "{answer}");
}

/// Trains models that write text, translate and compose for a moment.
fn train_writers(place: &TempDir) {
    std::fs::write(place.path().join("words"), "one two three\n".repeat(300)).unwrap();
    let piece = [[60, 64, 67], [59, 62, 67], [60, 64, 67], [60, 65, 69]].repeat(8);
    let pieces = json!({ "train": vec![&piece; 4], "valid": [&piece], "test": [&piece] });
    std::fs::create_dir(place.path().join("pieces")).unwrap();
    std::fs::write(place.path().join("pieces/pieces.json"), pieces.to_string()).unwrap();
    for arguments in [
        "char_lm --text words --hidden 8 --embedding 4 --window 20 --epochs 1 --quiet",
        "seq2seq --train-limit 64 --hidden 8 --embedding 8 --max-length 12 --epochs 1 --quiet",
        "music --dataset piano-roll --data-dir pieces --hidden 8 --embedding 8 --note-units 8 --epochs 1 --quiet",
    ] {
        // There may be notes about so little training.
        let output = command(&place, "playground").args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "{arguments}: {output:?}");
    }
}

#[test]
fn models_that_write_translate_and_compose_answer() {
    let place = tempdir().unwrap();
    train_writers(&place);
    let server = start(place.path());
    let beginning = |length: usize, temperature: f64| {
        let question = json!({ "text": "on\u{e9}", "length": length, "temperature": temperature, "top_k": 2, "seed": 1 });
        question.to_string().into_bytes()
    };
    let (status, answer) = ask(&server, "POST /api/ask/char_lm/1", &beginning(30, 0.5));
    assert!(status == 200 && answer["unknown"] == 1, "{status} {answer}");
    let (tokens, cells) = (answer["tokens"].as_array().unwrap(), answer["cells"].as_array().unwrap());
    assert!(tokens.len() == 30 && cells.len() == 16, "{answer}");
    assert!(cells.iter().all(|cell| cell["values"].as_str().unwrap().len() == 30), "{answer}");
    assert_eq!(ask(&server, "POST /api/ask/char_lm/1", &beginning(30, 0.5)).1, answer);
    fails(&server, "POST /api/ask/char_lm/1", &beginning(2001, 1.0), 400, &["2001", "1 to 2000"]);
    fails(&server, "POST /api/ask/char_lm/1", &beginning(1, -1.0), 400, &["temperature", "0 to 10"]);

    let (status, answer) = ask(&server, "POST /api/ask/seq2seq/1", br#"{"text": "3/5/16"}"#);
    let attention = &answer["attention"];
    assert!(status == 200 && answer["translation"].is_string(), "{status} {answer}");
    let weights = attention["weights"].as_array().unwrap();
    assert_eq!(weights.len(), attention["target"].as_array().unwrap().len());
    assert!(
        weights.iter().all(|row| row.as_array().unwrap().len() == 7),
        "the end has a weight, too: {answer}"
    );
    fails(&server, "POST /api/ask/seq2seq/1", br#"{"text": " "}"#, 400, &["empty"]);

    let order = |bars: usize| json!({ "bars": bars, "temperature": 0.5, "seed": 1 }).to_string().into_bytes();
    let (status, answer) = ask(&server, "POST /api/ask/music/1", &order(2));
    assert!(status == 200 && answer["page"] == "/answer/1", "{status} {answer}");
    let host = format!("Host: {}\r\n", server.address);
    let (status, page) = exchange(&server.address, "GET /answer/1", &host, b"");
    assert!(status == 200 && page.contains("const notes = ["), "{status} {page}");
    fails(&server, "POST /api/ask/music/1", &order(65), 400, &["65", "1 to 64"]);
    fails(&server, "GET /answer/2", b"", 404, &["gone"]);
}

/// The key that moves down, as the WebDriver protocol writes it.
const DOWN: &str = "\u{e015}";

/// A browser without a window.
struct Browser {
    driver: Child,
    address: String,
    /// The path of its session.
    session: String,
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ends the browser, too.
        let _ = exchange(&self.address, &format!("DELETE {}", self.session), &self.host(), b"");
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

impl Browser {
    /// Starts a browser of a phone's or a desktop's size.
    fn start(width: u32, height: u32) -> Self {
        let driver = Command::new("chromedriver").arg("--port=0").stdout(Stdio::piped()).spawn();
        let mut driver =
            driver.expect("chromedriver and chromium are needed: install chromium and chromium-driver");
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines().map_while(Result::ok);
        let line =
            lines.find(|line| line.contains("successfully on port")).expect("chromedriver names its port");
        let port = line.rsplit(' ').next().unwrap().trim_end_matches('.');
        let mut browser =
            Self { driver, address: format!("127.0.0.1:{port}"), session: "/session".to_string() };
        // Root has no sandbox, and a container little shared memory.
        let window = format!("--window-size={width},{height}");
        let arguments =
            ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", &window];
        let wanted =
            json!({ "capabilities": { "alwaysMatch": { "goog:chromeOptions": { "args": arguments } } } });
        let session = browser.call("POST", "", &wanted);
        let id =
            session["sessionId"].as_str().unwrap_or_else(|| panic!("chromium does not start: {session}"));
        browser.session = format!("/session/{id}");
        browser
    }

    fn host(&self) -> String {
        format!("Host: {}\r\nContent-Type: application/json\r\n", self.address)
    }

    /// Sends a command of the WebDriver protocol.
    fn call(&self, method: &str, command: &str, body: &Value) -> Value {
        let request = format!("{method} {}{command}", self.session);
        let body = if method == "GET" { String::new() } else { body.to_string() };
        let (_, text) = exchange(&self.address, &request, &self.host(), body.as_bytes());
        serde_json::from_str::<Value>(&text).unwrap()["value"].take()
    }

    /// Evaluates an expression on the page.
    fn evaluate(&self, expression: &str) -> Value {
        let script = json!({ "script": format!("return {expression}"), "args": [] });
        self.call("POST", "/execute/sync", &script)
    }

    /// Waits until the expression is true on the page.
    #[track_caller]
    fn wait_for(&self, expression: &str) {
        let start = Instant::now();
        while self.evaluate(expression) != json!(true) {
            let page = self.evaluate("document.body.innerText");
            assert!(start.elapsed() < Duration::from_secs(60), "it never came true: {expression}\n{page}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Presses and releases keys.
    fn press(&self, keys: &[&str]) {
        let actions = keys
            .iter()
            .flat_map(|key| ["keyDown", "keyUp"].map(|action| json!({ "type": action, "value": key })));
        let keyboard = json!({ "type": "key", "id": "keyboard", "actions": actions.collect::<Vec<_>>() });
        let done = self.call("POST", "/actions", &json!({ "actions": [keyboard] }));
        assert!(done.is_null(), "{done}");
    }

    /// Presses a mouse button at the first of the points, and moves to the others.
    ///
    /// Points are given in fractions of the canvas.
    fn drag(&self, points: &[(f64, f64)]) {
        let corner = |side: &str| {
            let position = format!("document.getElementById('canvas').getBoundingClientRect().{side}");
            self.evaluate(&position).as_f64().unwrap()
        };
        let (left, top, size) = (corner("left"), corner("top"), corner("width"));
        let to = |&(x, y): &(f64, f64)| {
            let [x, y] = [left + x * size, top + y * size].map(f64::round);
            json!({ "type": "pointerMove", "x": x, "y": y, "duration": 20 })
        };
        let mut actions = vec![to(&points[0]), json!({ "type": "pointerDown", "button": 0 })];
        actions.extend(points[1..].iter().map(to));
        actions.push(json!({ "type": "pointerUp", "button": 0 }));
        let mouse = json!({ "type": "pointer", "id": "mouse", "parameters": { "pointerType": "mouse" }, "actions": actions });
        let done = self.call("POST", "/actions", &json!({ "actions": [mouse] }));
        assert!(done.is_null(), "{done}");
    }
}

#[test]
fn the_page_reads_a_seven_that_the_mouse_draws() {
    let place = tempdir().unwrap();
    done(&place, "playground", "lenet --train-limit 6000 --epochs 2 --quiet");
    let server = start(place.path());
    let browser = Browser::start(1200, 900);
    browser.call("POST", "/url", &json!({ "url": format!("http://{}/", server.address) }));
    browser.wait_for("document.querySelector('#model-digit option') !== null");
    browser.drag(&[(0.25, 0.2), (0.5, 0.19), (0.76, 0.2), (0.66, 0.4), (0.55, 0.6), (0.46, 0.85)]);
    browser.wait_for("/^7 /.test(document.getElementById('digit-answer').textContent)");
    browser.wait_for("document.querySelectorAll('#maps canvas').length === 1 + 6 + 16");
    browser.evaluate("document.getElementById('clear').click()");
    browser.wait_for("document.getElementById('digit-bars').childElementCount === 0");

    // The arrow keys draw, too.
    browser.evaluate("document.getElementById('canvas').focus()");
    browser.press(&[" ", DOWN, DOWN, DOWN, DOWN, DOWN, DOWN, DOWN, DOWN, DOWN, DOWN, DOWN, DOWN]);
    browser.wait_for("document.getElementById('digit-bars').childElementCount === 3 * 10");
    assert_eq!(browser.evaluate("document.querySelector('#digit > .error').hidden"), true);

    // The first touch of the paper is a dot, which the model reads, too.
    let refused =
        "performance.getEntriesByType('resource').filter(entry => entry.responseStatus >= 400).length";
    assert_eq!(browser.evaluate(refused), 0);
}

#[test]
fn every_section_fits_a_phone() {
    let place = place_with_lenet();
    done(&place, "playground", "fasttext --train-limit 2000 --epochs 1 --quiet");
    done(&place, "playground", "birnn --train-limit 200 --epochs 1 --hidden 8 --quiet");
    train_writers(&place);
    let server = start(place.path());
    let browser = Browser::start(1200, 900);
    let phone = json!({ "width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": true });
    let emulation = json!({ "cmd": "Emulation.setDeviceMetricsOverride", "params": phone });
    assert_eq!(browser.call("POST", "/goog/cdp/execute", &emulation), json!({}));
    browser.call("POST", "/url", &json!({ "url": format!("http://{}/", server.address) }));
    browser.wait_for("innerWidth === 390 && document.querySelector('#model-music option') !== null");
    // What to do in each section, and what shows that its model has answered.
    for (section, action, answered) in [
        ("digit", "document.getElementById('sample').click()", "#maps canvas"),
        ("sentence", "0", "#phrases tr"),
        ("names", "0", "#tags span"),
        ("translation", "0", "#attention td"),
        ("text", "document.getElementById('write').requestSubmit()", "#written span"),
        ("music", "document.getElementById('compose').requestSubmit()", "#piece:not([hidden])"),
    ] {
        browser.evaluate(&format!("location.hash = '#/{section}'"));
        browser.wait_for(&format!("!document.getElementById('{section}').hidden"));
        browser.evaluate(action);
        browser.wait_for(&format!("document.querySelector('{answered}') !== null"));
        let width = browser.evaluate("document.documentElement.scrollWidth");
        assert!(width.as_u64() <= Some(390), "{section} is {width} pixels wide");
    }
}

#[test]
#[cfg(unix)]
fn one_training_runs_at_a_time_and_ends_on_request_and_with_the_server() {
    let place = tempdir().unwrap();
    let mut server = start(place.path());
    assert_eq!(ask(&server, "GET /api/training", b"").1, Value::Null);
    let progress = |wanted: &dyn Fn(&Value) -> bool| {
        let start = Instant::now();
        loop {
            let (_, progress) = ask(&server, "GET /api/training", b"");
            if wanted(&progress) {
                break progress;
            }
            assert!(start.elapsed() < Duration::from_secs(120), "{progress}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    assert_eq!(ask(&server, "POST /api/train/rnn", b"").0, 200);
    fails(&server, "POST /api/train/lenet", b"", 409, &["rnn is training"]);
    let first = progress(&|progress| progress["epochs"].as_array().is_some_and(|epochs| !epochs.is_empty()));
    assert!(first["epochs"][0]["train_loss"].is_f64() && first["total"].is_u64(), "{first}");
    assert_eq!(ask(&server, "POST /api/stop", b"").0, 200);
    let last = progress(&|progress| progress["running"] == false);
    assert!(last["code"] == 130 && last["lines"].to_string().contains("resume"), "{last}");
    // The result so far can be used.
    let (_, state) = ask(&server, "GET /api/state", b"");
    let rnn = state.as_array().unwrap().iter().find(|program| program["name"] == "rnn").unwrap();
    assert!(rnn["runs"][0]["name"] == "1" && rnn["runs"][0]["finished"] == false, "{rnn}");

    assert_eq!(ask(&server, "POST /api/train/rnn", b"").0, 200);
    let lock = place.path().join("runs/rnn/2/run.lock");
    while !lock.exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    // SAFETY: the process is our own child, which has not been waited for.
    assert_eq!(unsafe { libc::kill(server.child.id() as i32, libc::SIGINT) }, 0);
    assert_eq!(server.child.wait().unwrap().code(), Some(130));
    assert!(std::fs::File::open(lock).unwrap().try_lock().is_ok(), "its training goes on");
}

#[cfg(unix)]
#[test]
fn more_connections_than_files_may_be_open_are_survived() {
    let place = tempdir().unwrap();
    let program = command(place.path(), "playground").get_program().to_owned();
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -n 40; exec \"$0\" --port 0"]).arg(program).current_dir(&place);
    let server = started(shell.stdout(Stdio::piped()));
    let connections: Vec<_> = (0..60).map(|_| TcpStream::connect(&server.address).unwrap()).collect();
    let mut first = &connections[0];
    write!(first, "GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", server.address).unwrap();
    let mut page = String::new();
    first.read_to_string(&mut page).unwrap();
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    drop(connections);
    assert_eq!(ask(&server, "GET /api/state", b"").0, 200);
}
