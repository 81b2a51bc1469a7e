/* A plugin in C: it pins the interface of mdm_model.h, the ways that are right and those that are wrong. What an
 * instance does is named by its state, {"do":"..."}; what is wrong with its table, when it is compiled. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mdm_model.h"

#ifndef SAMPLE_VERSION
#define SAMPLE_VERSION MDM_ABI_VERSION
#endif
#ifndef SAMPLE_ANSWER
#define SAMPLE_ANSWER 1
#endif

static const mdm_host *host;

typedef struct sample {
  char what[64];
  unsigned long long *released; /* counts what was given back; the test's own */
  mdm_buffer *kept;
  mdm_tensor kept_tensor;
  uint64_t kept_shape[4];
  mdm_session *session;
} sample;

/* The text behind "key":" in JSON that was written without spaces. */
static void text_of(mdm_str json, const char *key, char *to, size_t room) {
  char all[4096] = {0};
  to[0] = 0;
  memcpy(all, json.data, json.length < sizeof all - 1 ? json.length : sizeof all - 1);
  char *at = strstr(all, key);
  if (!at) return;
  at += strlen(key);
  size_t n = 0;
  while (at[n] && at[n] != '"' && n < room - 1) n++;
  memcpy(to, at, n);
  to[n] = 0;
}

static int32_t describe(mdm_context *context, mdm_str state) {
  char what[64];
  text_of(state, "\"do\":\"", what, sizeof what);
  if (!strcmp(what, "bad_signature")) return host->signature(context, MDM_STR("{\"inputs\":[]}"));
  if (!strcmp(what, "bad_state")) {
    host->fail(context, MDM_FAILED_PRECONDITION, MDM_STR("the state has no tags"), 0, 0);
    return MDM_FAILED;
  }
  if (!strcmp(what, "early")) {
    mdm_tensor t = {0};
    return host->output(context, &t, NULL, NULL);
  }
  if (!strcmp(what, "whole")) return host->signature(context, MDM_STR("{\"rows\":\"whole\"}"));
  if (strncmp(what, "declared", 8)) return MDM_OK;
  return host->signature(context, MDM_STR("{\"inputs\":[{\"name\":\"x\",\"dtype\":\"INT32\",\"shape\":[\"N\"]}],"
                                          "\"outputs\":[{\"name\":\"y\",\"dtype\":\"INT32\",\"shape\":[\"N\"]},"
                                          "{\"name\":\"z\",\"dtype\":\"FP32\",\"shape\":[\"N\",2]}]}"));
}

static int32_t load(mdm_context *context, mdm_str state, void **instance) {
  char number[32], path[256];
  sample *self = calloc(1, sizeof *self);
  text_of(state, "\"do\":\"", self->what, sizeof self->what);
  text_of(state, "\"released\":\"", number, sizeof number);
  if (number[0]) self->released = (unsigned long long *)strtoull(number, NULL, 10);
  if (!strcmp(self->what, "unloadable")) {
    free(self);
    return MDM_FAILED;
  }
  text_of(state, "\"onnx\":\"", path, sizeof path);
  char batch[16], options[64] = {0};
  text_of(state, "\"batch\":\"", batch, sizeof batch);
  if (batch[0]) snprintf(options, sizeof options, "{\"batch\":%s}", batch);
  mdm_str said = {options, strlen(options)};
  if (path[0] && host->session_open(context, (mdm_str){path, strlen(path)}, said, &self->session)) {
    uint32_t code;
    mdm_str why = host->last_error(&code);
    host->fail(context, code, why, 0, 0);
    free(self);
    return MDM_FAILED;
  }
  host->log(MDM_LOG_DEBUG, MDM_STR("loaded"));
  *instance = self;
  return MDM_OK;
}

typedef struct loan {
  void *memory;
  unsigned long long *released;
} loan;

static void give_back(void *owner) {
  loan *l = owner;
  if (l->released) __atomic_add_fetch(l->released, 1, __ATOMIC_SEQ_CST);
  free(l->memory);
  free(l);
}

static loan *lend(sample *self, const void *from, size_t bytes) {
  loan *l = malloc(sizeof *l);
  l->memory = malloc(bytes ? bytes : 1);
  memcpy(l->memory, from, bytes);
  l->released = self->released;
  return l;
}

static int32_t infer(void *instance, mdm_context *context, const mdm_tensor *inputs, uint32_t input_count) {
  sample *self = instance;
  const char *what = self->what;
  if (input_count < 1) {
    host->fail(context, MDM_INVALID_ARGUMENT, MDM_STR("no inputs"), 0, 0);
    return MDM_FAILED;
  }
  mdm_tensor t = inputs[0];
  const int32_t *x = t.data;
  uint64_t rows = t.shape[0];
#define IS(name) (!strcmp(what, name))
#define GIVE(tensor) return host->output(context, &(tensor), NULL, NULL)

  if (IS("pass") || IS("whole")) GIVE(t); /* the host's own memory: its buffer is still in there */
  if (IS("copy")) {
    int32_t own[64];
    memcpy(own, x, t.data_bytes);
    t.data = own;
    t.buffer = NULL;
    int32_t status = host->output(context, &t, NULL, NULL);
    memset(own, 0xff, sizeof own);
    return status;
  }
  if (IS("adopt") || IS("adopt_and_fail")) {
    loan *l = lend(self, x, t.data_bytes);
    t.data = l->memory;
    t.buffer = NULL;
    if (host->output(context, &t, l, give_back)) return MDM_FAILED;
    return IS("adopt") ? MDM_OK : MDM_FAILED;
  }
  if (IS("alloc")) {
    void *memory;
    mdm_buffer *buffer = host->alloc(t.data_bytes, &memory);
    if (!buffer || (uintptr_t)memory % 64) return MDM_FAILED;
    for (uint64_t i = 0; i < rows; i++) ((int32_t *)memory)[i] = 2 * x[i];
    t.data = memory;
    t.buffer = buffer;
    int32_t status = host->output(context, &t, NULL, NULL);
    host->buffer_release(buffer);
    return status;
  }
  if (IS("keep")) { /* the first batch is given at the second call */
    if (!self->kept) {
      self->kept = t.buffer;
      self->kept_tensor = t;
      memcpy(self->kept_shape, t.shape, t.rank * sizeof *t.shape);
      host->buffer_retain(self->kept);
      GIVE(t);
    }
    self->kept_tensor.name = t.name;
    self->kept_tensor.shape = self->kept_shape;
    GIVE(self->kept_tensor);
  }
  if (IS("fail_row")) {
    for (uint64_t i = 0; i < rows; i++)
      if (x[i] < 0) {
        host->fail(context, MDM_INVALID_ARGUMENT, MDM_STR("a number is below 0"), i, 1);
        return MDM_FAILED;
      }
    GIVE(t);
  }
  if (IS("fail")) {
    host->fail(context, MDM_INTERNAL, MDM_STR("no mood"), 0, 0);
    return MDM_FAILED;
  }
  if (IS("silent")) return 77;
  if (IS("broken")) {
    host->fail(context, MDM_INTERNAL, MDM_STR("broken for good"), 0, 0);
    return MDM_BROKEN;
  }
  if (IS("nothing")) return MDM_OK;
  if (IS("path")) {
    mdm_str path;
    if (host->param_path(context, MDM_STR("words_path"), &path)) return MDM_FAILED;
    uint64_t offsets[2] = {0, path.length}, one = 1;
    mdm_tensor out = {MDM_STR("path"), MDM_BYTES, 1, &one, path.data, path.length, offsets, 2, NULL};
    GIVE(out);
  }
  if (IS("members")) {
    const mdm_member *members;
    uint32_t n = host->members(context, &members);
    loan *l = lend(self, x, t.data_bytes);
    int32_t *out = l->memory;
    for (uint32_t m = 0; m < n; m++)
      for (uint64_t r = 0; r < members[m].rows; r++)
        out[members[m].first_row + r] = (int32_t)(100 * m + members[m].offset + r);
    t.data = l->memory;
    t.buffer = NULL;
    return host->output(context, &t, l, give_back);
  }
  if (IS("cancelled")) {
    loan *l = lend(self, x, t.data_bytes);
    memset(l->memory, host->is_cancelled(context), t.data_bytes);
    t.data = l->memory;
    t.buffer = NULL;
    return host->output(context, &t, l, give_back);
  }
  if (IS("session")) {
    const mdm_tensor *outputs;
    uint32_t n;
    if (host->session_run(self->session, inputs, input_count, &outputs, &n)) {
      uint32_t code;
      mdm_str why = host->last_error(&code);
      host->fail(context, code, why, 0, 0);
      return MDM_FAILED;
    }
    for (uint32_t i = 0; i < n; i++)
      if (host->output(context, &outputs[i], NULL, NULL)) return MDM_FAILED;
    return MDM_OK;
  }

  /* From here on: what must be refused. */
  uint64_t shape[2] = {rows, 1}, offsets[64] = {0};
  static const char letters[64] = "abcdefgh";
  t.buffer = NULL;
  if (IS("null_tensor")) return host->output(context, NULL, NULL, NULL);
  if (IS("ignored")) { /* the plugin overlooks that its output was refused */
    host->output(context, NULL, NULL, NULL);
    t.buffer = inputs[0].buffer;
    GIVE(t);
  }
  if (IS("null_shape")) t.shape = NULL;
  if (IS("null_data")) t.data = NULL;
  if (IS("rank")) t.rank = 1000000;
  if (IS("overflow")) {
    shape[0] = rows;
    shape[1] = UINT64_MAX;
    t.shape = shape;
    t.rank = 2;
  }
  if (IS("huge")) {
    shape[1] = UINT64_MAX / 64;
    t.shape = shape;
    t.rank = 2;
    t.data_bytes = UINT64_MAX / 16;
  }
  if (IS("wrap")) {
    t.datatype = MDM_BYTES;
    t.data = (const void *)(uintptr_t)-16;
    t.data_bytes = 64;
    t.offsets = offsets;
    t.offset_count = rows + 1;
  }
  if (IS("length")) t.data_bytes += 4;
  if (IS("short")) t.data_bytes -= 1;
  if (IS("datatype")) t.datatype = 99;
  if (IS("datatype_0")) t.datatype = 0;
  if (IS("name")) t.name = (mdm_str){"\xff\xfe", 2};
  if (IS("null_name")) t.name = (mdm_str){NULL, 5};
  if (IS("long_name")) t.name = (mdm_str){letters, UINT64_MAX};
  if (IS("bool")) {
    t.datatype = MDM_BOOL;
    t.data = "\0\1\2\1";
    t.data_bytes = rows;
  }
  if (IS("rows")) {
    shape[0] = rows - 1;
    t.shape = shape;
    t.data_bytes -= 4;
  }
  if (IS("scalar")) {
    t.rank = 0;
    t.data_bytes = 4;
  }
  if (!strncmp(what, "offset", 6)) {
    t.datatype = MDM_BYTES;
    t.data = letters;
    t.data_bytes = 8;
    t.offsets = offsets;
    t.offset_count = rows + 1;
    for (uint64_t i = 0; i <= rows; i++) offsets[i] = 8 * i / rows;
  }
  if (IS("offsets_null")) t.offsets = NULL;
  if (IS("offset_count")) t.offset_count = rows;
  if (IS("offset_order")) offsets[1] = 7;
  if (IS("offset_start")) offsets[0] = 1;
  if (IS("offset_end")) offsets[rows] = 9;
  if (IS("offset_far")) offsets[rows] = UINT64_MAX;
  if (IS("offset_overlap")) t.data = offsets;
  if (IS("outside")) {
    t.buffer = inputs[0].buffer;
    t.data = letters;
  }
  if (IS("beyond")) { /* begins inside the buffer and leads out of it */
    t.buffer = inputs[0].buffer;
    t.data = x + 1;
  }
  if (IS("twice")) {
    if (host->output(context, &t, NULL, NULL)) return MDM_FAILED;
    GIVE(t);
  }
  if (IS("owner_twice")) {
    loan *l = lend(self, x, t.data_bytes);
    t.data = l->memory;
    if (host->output(context, &t, l, give_back)) return MDM_FAILED;
    t.name = MDM_STR("again");
    return host->output(context, &t, l, give_back);
  }
  if (IS("overlap")) {
    loan *first = lend(self, x, t.data_bytes), *second = lend(self, x, t.data_bytes);
    t.data = first->memory;
    if (host->output(context, &t, first, give_back)) return MDM_FAILED;
    t.name = MDM_STR("again");
    return host->output(context, &t, second, give_back);
  }
  if (IS("lent_wrong")) { /* refused, and given back all the same */
    loan *l = lend(self, x, t.data_bytes);
    t.data = l->memory;
    t.datatype = 99;
    return host->output(context, &t, l, give_back);
  }
  if (IS("lent_input")) { /* an input lent without being held: the host holds it */
    loan *l = lend(self, x, 0);
    return host->output(context, &t, l, give_back);
  }
  if (IS("declared_name")) t.name = MDM_STR("q");
  if (IS("declared_datatype") || IS("declared_shape") || IS("declared_missing") || IS("declared")) {
    float z[128] = {0};
    uint64_t two[2] = {rows, IS("declared_shape") ? 1 : 2};
    mdm_tensor other = {MDM_STR("z"), MDM_FP32, 2, two, z, rows * two[1] * 4, NULL, 0, NULL};
    if (IS("declared_datatype")) {
      other.datatype = MDM_INT32;
    }
    if (!IS("declared_missing") && host->output(context, &other, NULL, NULL)) return MDM_FAILED;
    t.name = MDM_STR("y"); /* the second first: the host puts them in order */
  }
  GIVE(t);
}

static void unload(void *instance) {
  sample *self = instance;
  if (self->kept) host->buffer_release(self->kept);
  if (self->session) host->session_close(self->session);
  if (self->released && !strcmp(self->what, "broken")) __atomic_add_fetch(self->released, 1000, __ATOMIC_SEQ_CST);
  free(self);
}

static const mdm_entry entries[] = {
    {MDM_STR_INIT("model"), describe, load, infer, unload},
#ifdef SAMPLE_TWO
    {MDM_STR_INIT("other"), NULL, load, infer, unload},
#endif
};

static const mdm_plugin plugin = {
    SAMPLE_VERSION,
#ifdef SAMPLE_TRUNCATED
    12,
#else
    sizeof(mdm_plugin),
#endif
#ifdef SAMPLE_SMALL_ENTRIES
    16,
#else
    sizeof(mdm_entry),
#endif
#ifdef SAMPLE_NO_ENTRIES
    0,
#else
    sizeof entries / sizeof entries[0],
#endif
#ifdef SAMPLE_NULL_ENTRIES
    NULL,
#else
    entries,
#endif
};

#ifdef SAMPLE_OTHER_SYMBOL
#define mdm_plugin_entry mdm_plugin_entry_2
const mdm_plugin *mdm_plugin_entry(const mdm_host *from);
#endif
const mdm_plugin *mdm_plugin_entry(const mdm_host *from) {
  if (from->abi_version != MDM_ABI_VERSION || from->size < sizeof *from) return NULL;
  host = from;
  return SAMPLE_ANSWER ? &plugin : NULL;
}
