//! Clients that disconnect, that are slow, or that are too many.

use super::{CONNECTIONS, Client, SocketServer, TIMEOUT, until};
use bitnetd::transport::BacklogPolicy;
use serde_json::{Value, json};
use std::io::Write as _;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::{sleep, timeout};

#[tokio::test]
async fn closing_the_connection_cancels_its_requests_and_no_others() {
    let context = SocketServer::open();
    let (mut leaver, mut stayer) = (context.client().await, context.client().await);
    leaver.ask("a", "hang").await;
    leaver.ask("b", "hang").await;
    context.wait_for(1).await;
    stayer.ask("c", "hang").await;
    let stays = context.wait_for(2).await;
    drop(leaver);
    let (a, b) = (context.wait_for(0).await, context.wait_for(1).await);
    until(|| (a.cancel.is_raised() && b.cancel.is_raised()).then_some(())).await;
    assert_eq!((stays.id.as_str(), stays.cancel.is_raised()), ("c", false));
    stayer.assert_serves().await;
}

#[tokio::test]
async fn a_client_that_ends_its_sending_still_gets_its_answers() {
    let context = SocketServer::open();
    let mut client = context.client().await;
    // The last line has no end of its own.
    client.send("{\"id\":\"a\",\"prompt\":\"hang\"}\n{\"id\":\"b\",\"prompt\":\"last words\"}").await;
    client.shut_write().await;
    assert_eq!(client.end().await["text"], "last words");
    // Nothing was cancelled by the end of the stream, nor while the daemon could have noticed it.
    sleep(Duration::from_millis(50)).await;
    let hanging = context.wait_for(0).await;
    assert!(!hanging.cancel.is_raised());
    hanging.cancel.raise();
    assert_eq!(client.end().await["id"], "a");
    assert_eq!(client.event().await, None, "the connection ends with the last answer");
}

#[tokio::test]
async fn a_client_that_vanishes_after_ending_its_sending_is_noticed() {
    let context = SocketServer::open();
    let mut client = context.client().await;
    client.ask("a", "hang").await;
    client.shut_write().await;
    let hanging = context.wait_for(0).await;
    sleep(Duration::from_millis(50)).await;
    assert!(!hanging.cancel.is_raised());
    drop(client);
    until(|| hanging.cancel.is_raised().then_some(())).await;
}

#[tokio::test]
async fn a_killed_client_is_noticed_although_nothing_is_written_to_it() {
    let context = SocketServer::open();
    let mut client = context.client().await;
    // More than may be in flight, so that its last lines are never read and its end is not either.
    for number in 0..100 {
        client.ask(&number.to_string(), "hang").await;
    }
    let last = context.wait_for(63).await;
    assert!(context.seen(64).is_none(), "the rest waits unread");
    drop(client);
    until(|| last.cancel.is_raised().then_some(())).await;
}

#[tokio::test]
async fn more_requests_than_may_be_in_flight_wait_and_are_all_answered() {
    let context = SocketServer::open();
    let mut client = context.client().await;
    let (count, mut ended) = (1000, 0);
    let lines: String = (0..count).map(|n| format!("{{\"prompt\":\"number {n}\"}}\n")).collect();
    let Client { lines: mut answers, mut write } = client;
    let send = async { write.write_all(lines.as_bytes()).await.expect("open") };
    let read = async {
        while ended < count {
            let line = answers.next_line().await.expect("sound").expect("not the end");
            ended += usize::from(line.contains("\"done\""));
        }
    };
    timeout(TIMEOUT, async { tokio::join!(send, read) }).await.expect("all answered");
    client = Client { lines: answers, write };
    client.assert_serves().await;
}

#[tokio::test]
async fn a_slow_reader_loses_its_request_and_delays_no_other_client() {
    let context = SocketServer::open();
    let mut slow = context.client().await;
    slow.ask("flood", "flood").await;
    let flood = context.wait_for(0).await;
    let mut other = context.client().await;
    for _ in 0..20 {
        other.assert_serves().await;
    }
    until(|| flood.cancel.is_raised().then_some(())).await;
    other.assert_serves().await;
    // Once it reads again it receives the last event of its request, and can send further ones.
    assert_eq!(slow.end().await["finish_reason"], "cancelled");
    slow.assert_serves().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_reads_again_is_dropped() {
    let context = SocketServer::open();
    let mut slow = context.client().await;
    slow.ask("flood", "flood").await;
    slow.ask("hang", "hang").await;
    // The clock stands still but for the daemon's own waits.
    let hang = context.wait_for(1).await;
    until(|| hang.cancel.is_raised().then_some(())).await;
}

#[tokio::test]
async fn a_request_that_the_daemon_loses_says_so() {
    let context = SocketServer::open();
    let mut client = context.client().await;
    client.ask("a", "lost").await;
    client.assert_error(json!("a"), "internal").await;
}

#[tokio::test]
async fn a_daemon_without_a_worker_says_shutting_down() {
    let context = SocketServer::open();
    let mut client = context.client().await;
    context.worker.abort();
    client.ask("a", "x").await;
    client.assert_error(json!("a"), "shutting_down").await;
}

#[tokio::test]
async fn draining_refuses_new_requests_and_lets_running_ones_end() {
    let context = SocketServer::open();
    let mut client = context.client().await;
    client.ask("old", "hang").await;
    let old = context.wait_for(0).await;
    context.draining.cancel();
    client.ask("new", "x").await;
    client.assert_error(json!("new"), "shutting_down").await;
    assert!(!old.cancel.is_raised());
    client.send("{\"cancel\":\"old\"}\n").await;
    assert_eq!(client.end().await["id"], "old");
    let mut late = context.client().await;
    late.ask("late", "x").await;
    late.assert_error(json!("late"), "shutting_down").await;
}

#[tokio::test]
async fn closing_ends_every_request_writes_its_end_and_returns() {
    let context = SocketServer::open();
    let (mut client, mut idle) = (context.client().await, context.client().await);
    client.ask("a", "hang").await;
    client.ask("b", "deaf").await;
    context.wait_for(1).await;
    idle.assert_serves().await;
    context.close.cancel();
    let cancelled = client.end().await;
    assert_eq!((&cancelled["id"], &cancelled["finish_reason"]), (&json!("a"), &json!("cancelled")));
    client.assert_error(json!("b"), "shutting_down").await;
    assert_eq!(client.event().await, None);
    assert_eq!(idle.event().await, None);
    context.worker.abort();
    context.shut().await;
}

#[tokio::test]
async fn closing_leaves_no_request_without_an_end() {
    const MOST_IN_FLIGHT: usize = 64;
    let context = SocketServer::open();
    let mut client = context.client().await;
    let lines: String =
        (0..MOST_IN_FLIGHT + 6).map(|n| format!("{{\"id\":\"{n}\",\"prompt\":\"hang\"}}\n")).collect();
    client.send(lines).await;
    context.wait_for(MOST_IN_FLIGHT - 1).await;
    // The rest is still in the socket, or waits for a free slot.
    context.close.cancel();
    let (mut cancelled, mut refused) = (0, 0);
    while let Some(event) = client.event().await {
        match event["event"].as_str() {
            Some("done") => cancelled += 1,
            _ => {
                assert_eq!(event["code"], "shutting_down", "{event}");
                refused += 1;
            }
        }
    }
    assert_eq!((cancelled, refused), (MOST_IN_FLIGHT, 6));
    let late = client.write.write_all(b"{\"prompt\":\"late\"}\n").await;
    assert!(late.is_err(), "what is not taken cannot be written");
    context.shut().await;
}

#[tokio::test]
async fn whoever_comes_to_a_socket_that_outlives_the_daemon_waits_for_the_next_one() {
    let first = SocketServer::with(BacklogPolicy::LeaveQueued);
    let mut early = first.client().await;
    early.assert_serves().await;
    first.draining.cancel();
    // The request on the open connection is refused before the next client connects.
    early.ask("a", "x").await;
    early.assert_error(json!("a"), "shutting_down").await;
    let mut late = first.client().await;
    late.ask("still", "here").await;
    let _next = first.replaced().await;
    let event = late.end().await;
    assert_eq!((&event["id"], &event["text"]), (&json!("still"), &json!("here")));
}

#[tokio::test(start_paused = true)]
async fn closing_does_not_wait_for_a_client_that_does_not_read() {
    let context = SocketServer::open();
    let mut slow = context.client().await;
    slow.ask("a", "flood").await;
    let flood = context.wait_for(0).await;
    until(|| flood.cancel.is_raised().then_some(())).await;
    let before = tokio::time::Instant::now();
    context.shut().await;
    assert!(before.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn a_thousand_connections_are_served_or_let_go_for_later_ones() {
    let context = SocketServer::open();
    let mut clients = Vec::new();
    for _ in 0..1000 {
        clients.push(context.client().await);
    }
    let (mut served, mut refused) = (0, 0);
    for mut client in clients.drain(..).rev() {
        let _ = client.write.write_all(b"{\"prompt\":\"x\"}\n").await;
        let event = client.end().await;
        match event["event"].as_str() {
            Some("done") => served += 1,
            _ => {
                // Evicted for a later one while idle, or refused because the others had only just connected.
                let is_retry_advised = event["code"] == "queue_full" && event["retry_after_ms"].is_u64();
                assert!(event["code"] == "timeout" || is_retry_advised, "{event}");
                assert_eq!(event["id"], Value::Null);
                refused += 1;
            }
        }
    }
    assert!(served >= CONNECTIONS && served + refused == 1000, "{served} {refused}");
    context.client().await.assert_serves().await;
}

#[tokio::test]
async fn the_longest_idle_connection_goes_for_a_new_one_and_none_that_waits_for_an_answer() {
    let context = SocketServer::open();
    let mut clients = Vec::new();
    for number in 0..CONNECTIONS {
        let mut client = context.client().await;
        if number != 1 && number != 2 {
            client.send("{\"prompt\":\"hang\"}\n").await;
        }
        clients.push(client);
    }
    context.wait_for(CONNECTIONS - 3).await;
    // A client that has only just connected is not taken for idle.
    sleep(Duration::from_millis(300)).await;
    context.client().await.assert_serves().await;
    let mut second = clients.swap_remove(2);
    second.assert_serves().await;
    let mut first = clients.swap_remove(1);
    let event = first.end().await;
    assert_eq!((&event["code"], &event["id"]), (&json!("timeout"), &Value::Null), "{event}");
    assert!(clients.len() == CONNECTIONS - 2 && context.seen(0).is_some_and(|seen| !seen.cancel.is_raised()));
}

#[tokio::test]
async fn of_more_clients_than_connections_that_all_ask_none_is_closed_as_idle() {
    let context = SocketServer::open();
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS + 16 {
        // On this thread: the server runs only once all requests are in their sockets' buffers.
        let mut stream = std::os::unix::net::UnixStream::connect(&context.path).expect("it listens");
        stream.write_all(b"{\"prompt\":\"here\"}\n").expect("the buffer has room");
        stream.set_nonblocking(true).expect("a socket");
        clients.push(Client::new(tokio::net::UnixStream::from_std(stream).expect("inside the runtime")));
    }
    let mut served = 0;
    for client in &mut clients {
        let event = client.end().await;
        match event["event"].as_str() {
            Some("done") => served += 1,
            _ => assert_eq!((&event["code"], &event["id"]), (&json!("queue_full"), &Value::Null), "{event}"),
        }
    }
    assert!(served >= CONNECTIONS, "{served}");
}

#[tokio::test]
async fn connections_that_come_and_go_leave_nothing_behind() {
    let context = SocketServer::open();
    for number in 0..2 * CONNECTIONS {
        let mut client = context.client().await;
        client.send("{\"prompt\":\"hang\"}\n{\"pro").await;
        context.wait_for(number).await;
    }
    context.client().await.assert_serves().await;
    let last = context.wait_for(2 * CONNECTIONS - 1).await;
    until(|| last.cancel.is_raised().then_some(())).await;
    context.shut().await;
}
