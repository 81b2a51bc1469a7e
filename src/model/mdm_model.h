/*
 * mdm_model.h: the C interface between the MDM server (the host) and a plugin, version 1.
 *
 * A plugin is a shared library below the server's run-script directory. A proxy (NAME.proxy) names it:
 *
 *     {"mdm": 1, "plugin": "libsample.so", "entry": "model", "state": {"greeting": "hello"}}
 *
 * The library exports one symbol, mdm_plugin_entry. The host calls it once after it opened the library, gives it the
 * table of what the host can do, and gets the table of what the plugin can do. Authors in Rust do not need this file:
 * they write `impl mdm::plugin::Model` and `mdm::export_model!`.
 *
 * VERSIONS. Both tables begin with `abi_version` and `size`. The versions must be equal. Within a version tables grow
 * only at their end: whoever reads a table uses only fields that lie inside its `size`, and refuses a table that is
 * smaller than that of this file. Functions beyond it may be missing. mdm_str, mdm_tensor and mdm_member never change
 * within a version, for they travel in arrays.
 *
 * THREADS. `mdm_plugin_entry` and `describe` are called in a thread that loads models. `load` is called in a worker's
 * thread, and so are `infer` and `unload` of the instance that it made: one instance per worker, never two threads in
 * one instance. Different instances run at once in different threads: what they share in static memory is the
 * plugin's to guard. A context may be used only in the thread that was given it and only until that call returns.
 * `log`, `alloc`, `buffer_retain` and `buffer_release` may be called in any thread at any time. Threads that a plugin
 * starts must have ended when `unload` returns.
 *
 * OWNERSHIP. What a function is given is lent until it returns, unless it says otherwise. What the host gives out
 * (texts, shapes, inputs) stays valid until the call that it was given to returns. The library stays open as long as
 * an instance of it, or memory that it lent to the host, is in use.
 *
 * ERRORS. Functions that return int32_t return 0 for success. A plugin that fails calls `fail` with a code and a
 * message for the client, and returns MDM_FAILED. A host function that fails returns MDM_FAILED, and `last_error` says
 * why. No exception, panic or longjmp may cross this interface.
 *
 * BYTES. Everything is row-major and little-endian. Dimension 0 is the row.
 */
#ifndef MDM_MODEL_H
#define MDM_MODEL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MDM_ABI_VERSION 1u

/* What int32_t functions return. */
#define MDM_OK 0
#define MDM_FAILED 1
/* From `infer` only: as MDM_FAILED, and the instance must not be used again. The host unloads it and loads another. */
#define MDM_BROKEN 2

/* Datatypes. The bytes of an element follow the name; BYTES and JSON have offsets. */
#define MDM_BOOL 1u    /* 1; 0 or 1 */
#define MDM_INT8 2u    /* 1 */
#define MDM_INT16 3u   /* 2 */
#define MDM_INT32 4u   /* 4 */
#define MDM_INT64 5u   /* 8 */
#define MDM_UINT8 6u   /* 1 */
#define MDM_UINT16 7u  /* 2 */
#define MDM_UINT32 8u  /* 4 */
#define MDM_UINT64 9u  /* 8 */
#define MDM_FP16 10u   /* 2; IEEE 754 half precision */
#define MDM_BF16 11u   /* 2; the upper half of an FP32 */
#define MDM_FP32 12u   /* 4 */
#define MDM_FP64 13u   /* 8 */
#define MDM_BYTES 14u  /* byte strings of any length */
#define MDM_JSON 15u   /* each element is one msgpack document */

/* Error codes; what a client acts on. */
#define MDM_INVALID_ARGUMENT 1u    /* the rows do not fit: the same request can never succeed */
#define MDM_NOT_FOUND 2u           /* no such file */
#define MDM_PERMISSION_DENIED 3u   /* outside the allowed directories */
#define MDM_RESOURCE_EXHAUSTED 4u  /* try later, or ask for less */
#define MDM_DEADLINE_EXCEEDED 5u
#define MDM_CANCELLED 6u
#define MDM_UNAVAILABLE 7u
#define MDM_FAILED_PRECONDITION 8u /* the model cannot be loaded */
#define MDM_INTERNAL 9u            /* the model failed */

/* Levels of the log. */
#define MDM_LOG_ERROR 1u
#define MDM_LOG_WARN 2u
#define MDM_LOG_INFO 3u
#define MDM_LOG_DEBUG 4u
#define MDM_LOG_TRACE 5u

/* UTF-8 text, not closed by a 0. `data` may be NULL if `length` is 0. */
typedef struct mdm_str {
  const char *data;
  uint64_t length;
} mdm_str;

/* An mdm_str of a string literal, where a value is wanted: as an argument, in an assignment. */
#ifdef __cplusplus
#define MDM_STR(literal) (mdm_str{(literal), sizeof(literal) - 1})
#else
#define MDM_STR(literal) ((mdm_str){(literal), sizeof(literal) - 1})
#endif
/* The same where an initializer is wanted: in a static table, which takes no compound literal.
 *     static const mdm_entry entries[] = {{MDM_STR_INIT("model"), describe, load, infer, unload}}; */
#define MDM_STR_INIT(literal) {(literal), sizeof(literal) - 1}

/* What a call of the host belongs to. */
typedef struct mdm_context mdm_context;

/* Memory that the host owns: an input, what `alloc` gave, an output of a session. It is counted: `buffer_retain` adds a
 * holder, `buffer_release` takes one away, and the memory goes with the last. */
typedef struct mdm_buffer mdm_buffer;

/* A session of ONNX Runtime on the worker's device. */
typedef struct mdm_session mdm_session;

/* A tensor. Of fixed-size elements, `data` has product(shape) of them, at an address that is a multiple of their
 * size. Of BYTES and JSON, element i is data[offsets[i]..offsets[i+1]]; there are product(shape)+1 offsets, ascending
 * from 0 to `data_bytes`. A pointer to nothing may be NULL where a plugin gives it; the host never gives NULL for
 * `data`. */
typedef struct mdm_tensor {
  mdm_str name;
  uint32_t datatype;
  uint32_t rank; /* at most 64; 0 is a scalar */
  const uint64_t *shape;
  const void *data;
  uint64_t data_bytes;
  const uint64_t *offsets; /* BYTES and JSON, else NULL */
  uint64_t offset_count;   /* product(shape) + 1, or 0 */
  mdm_buffer *buffer;      /* the memory's holder, if it is the host's; else NULL */
} mdm_tensor;

/* The rows of one request in a batch. */
typedef struct mdm_member {
  uint64_t first_row; /* in the batch */
  uint64_t rows;      /* so many; 1 for a model that gets requests whole */
  uint64_t offset;    /* of the first row in its request */
  uint64_t total;     /* rows of the whole request */
} mdm_member;

/* What the host can do. The table lives as long as the process. */
typedef struct mdm_host {
  uint32_t abi_version;
  uint32_t size;

  /* Why the last function of this table that returned MDM_FAILED (or NULL) in this thread did so; `code` may be NULL.
   * The text is valid until the next such failure in this thread. */
  mdm_str (*last_error)(uint32_t *code);
  /* A line for the server's log. */
  void (*log)(uint32_t level, mdm_str message);

  /* In describe, load and infer: what went wrong, for the client to read. In infer, `row_count` rows of the batch from
   * `first_row` on are to blame; the client is told their numbers in its own request. 0: no row in particular. The
   * last call counts. */
  void (*fail)(mdm_context *context, uint32_t code, mdm_str message, uint64_t first_row, uint64_t row_count);

  /* In describe: what the entry takes and gives, as JSON:
   *
   *     {"inputs":  [{"name": "text", "dtype": "BYTES", "shape": ["N"]}],
   *      "outputs": [{"name": "ids", "dtype": "INT64", "shape": ["N", -1, 4]}],
   *      "rows": "independent"}
   *
   * A dimension is a size, -1 for any, a name for any that is the same wherever the name stands, or, as the last one,
   * "..." for any number of further ones. `rows`: "independent" (requests are split and put together; every output has
   * a row for each row of the inputs) or "whole" (each request is run by itself, and outputs have any shape); the
   * default is "independent". Without `inputs` the entry takes anything; without `outputs` it gives anything. An entry
   * that never calls this takes and gives anything, and its rows are independent. */
  int32_t (*signature)(mdm_context *context, mdm_str json);

  /* In describe and load: the absolute path of a file that the state names, relative to the proxy's folder. It must be
   * there, below one of the directories that the server allows. */
  int32_t (*resolve_path)(mdm_context *context, mdm_str path, mdm_str *absolute);
  /* In infer: the absolute path that the request's parameter `key` names; `key` ends in "_path". */
  int32_t (*param_path)(mdm_context *context, mdm_str key, mdm_str *absolute);
  /* In infer: the request's parameters, a JSON object. */
  mdm_str (*params)(mdm_context *context);
  /* In infer: whose rows these are, in their order in the batch. Returns how many members there are. */
  uint32_t (*members)(mdm_context *context, const mdm_member **members);
  /* In infer: 1 once all requests of these rows were cancelled. A plugin that runs long may stop then. */
  int32_t (*is_cancelled)(mdm_context *context);
  /* In load and infer: where the worker runs: "cpu", "cuda:0", ... */
  mdm_str (*device)(mdm_context *context);

  /* Memory of the host's, 64-byte aligned and filled with 0; NULL if there is no memory. The caller is its holder
   * and calls `buffer_release`, also after it was given to `output`. It may be written until then. */
  mdm_buffer *(*alloc)(uint64_t bytes, void **memory);
  void (*buffer_retain)(mdm_buffer *buffer);
  void (*buffer_release)(mdm_buffer *buffer);

  /* In infer: adds an output. It is checked first: its name, datatype and shape, against what the entry declared and
   * the rows of the inputs, its lengths and its offsets; one that does not fit fails the call.
   *
   * Whose memory it is, is said in one of three ways:
   *  - `release` is not NULL: the plugin lends `data` and `offsets` to the host, which calls release(owner) exactly
   *    once, in any thread, when it needs them no more; whatever `output` returns. Nothing is copied. Each call
   *    needs an owner of its own, and memory that no other output of this call is lent.
   *  - tensor->buffer is not NULL: the memory is part of that buffer, which the host holds too from then on. Nothing
   *    is copied. So an input is given back as it is.
   *  - neither: `data` and `offsets` are copied before `output` returns.
   * `name` and `shape` are copied always. */
  int32_t (*output)(mdm_context *context, const mdm_tensor *tensor, void *owner, void (*release)(void *owner));

  /* In load: a session over an ONNX file, whose path is as for `resolve_path`, on the worker's device; sessions of
   * several workers share its weights. `options` is JSON as in a proxy, or empty. The session belongs to the instance
   * and is used in its thread alone; `session_close` before or in `unload`. */
  int32_t (*session_open)(mdm_context *context, mdm_str path, mdm_str options, mdm_session **session);
  /* What it takes and gives: JSON as for `signature`. Valid until it is closed. */
  mdm_str (*session_signature)(mdm_session *session);
  /* Runs a batch. `inputs` are in any order and stay the caller's. The outputs, in the signature's order, are valid
   * until the session runs again or is closed; to keep one longer, or to give it to `output`, there is its `buffer`. */
  int32_t (*session_run)(mdm_session *session, const mdm_tensor *inputs, uint32_t input_count,
                         const mdm_tensor **outputs, uint32_t *output_count);
  void (*session_close)(mdm_session *session);
} mdm_host;

/* One model that a plugin offers. A proxy picks it by "entry"; without one it is the only entry, or that of the name
 * "model". */
typedef struct mdm_entry {
  mdm_str name;
  /* What a model of this state takes and gives. May be NULL: anything. `state` is the proxy's "state" as JSON, null if
   * it has none. */
  int32_t (*describe)(mdm_context *context, mdm_str state);
  /* Makes an instance for a worker. */
  int32_t (*load)(mdm_context *context, mdm_str state, void **instance);
  /* Runs a batch. Inputs are in the declared order, and checked against what was declared. */
  int32_t (*infer)(void *instance, mdm_context *context, const mdm_tensor *inputs, uint32_t input_count);
  /* Ends an instance. Called once for each that `load` made; may be NULL. */
  void (*unload)(void *instance);
} mdm_entry;

/* What a plugin can do. The table and all that it refers to live as long as the library is open. */
typedef struct mdm_plugin {
  uint32_t abi_version; /* MDM_ABI_VERSION */
  uint32_t size;        /* sizeof(mdm_plugin) */
  uint32_t entry_size;  /* sizeof(mdm_entry) */
  uint32_t entry_count; /* 1 to 64 */
  const mdm_entry *entries;
} mdm_plugin;

/* The one symbol that a plugin exports. NULL: the plugin cannot work with this host (the host's error says so). */
#if defined(MDM_PLUGIN_BUILD) && defined(__GNUC__)
__attribute__((visibility("default")))
#endif
const mdm_plugin *mdm_plugin_entry(const mdm_host *host);

#ifdef __cplusplus
}
#endif

#endif
