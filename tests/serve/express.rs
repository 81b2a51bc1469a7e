//! Small requests while every worker is inside one long run of bulk.

use mdm::DataType;

use crate::commands::run;
use crate::common::{PATIENCE, Server, eventually, models, onnx, within};
use crate::models::{BUSY_ROWS, busy, busy_rows};
use crate::numbered;

/// The bulk chunk is one run that takes as long as the test: that the small request's answer comes shows that it waited for no
/// end of a run.
#[test]
fn a_small_request_is_answered_in_the_middle_of_a_run_of_bulk() {
    within(PATIENCE, || {
        let dir = models(&[
            ("busy.onnx", busy()),
            ("busy.proxy", busy_rows("busy")),
            ("echo.onnx", onnx::echo(DataType::Int64, &[2])),
        ]);
        let flags = ["--num-worker=1", "--express-workers=1", "--preload=busy"];
        let server = Server::start(dir, &flags);
        let client = server.client();
        let bulk = client
            .submit(vec![60_000_000i64; BUSY_ROWS], "busy")
            .unwrap();
        eventually("bulk runs", || {
            client.status().unwrap().workers[0].state == "busy"
        });
        for rows in [1, 3] {
            let sent = numbered(7, rows);
            let answer = client.infer(sent.clone(), "echo").unwrap();
            let answer = answer.only().unwrap().to_vec::<i64>().unwrap();
            assert_eq!(answer, sent.to_vec::<i64>().unwrap());
        }
        let status = client.status().unwrap();
        let [worker] = &status.workers[..] else {
            panic!("{status:?}");
        };
        assert_eq!((&*worker.state, worker.chunks), ("busy", 0), "{status:?}");
        let [express] = &status.express_workers[..] else {
            panic!("{status:?}");
        };
        let ran = (express.id, express.chunks, express.rows);
        assert_eq!(ran, (1, 2, 4), "{status:?}");
        assert_eq!(express.model.as_deref(), Some("echo"));
        let (_, page, _) = run("mdm-server-status", &server, server.dir.path(), &[]);
        assert!(page.contains(" express "), "{page}");
        client.cancel(&bulk);
    });
}
