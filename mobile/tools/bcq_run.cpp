/// bcq-run: a package on the command line, over the C API alone.
///
///     bcq-run MODEL.bcq [--ids 1,2,3 | --prompt TEXT] [-n N] [--threads N] [--kv f32|f16|int8]
///             [--activations exact|int8|int8-token] [--context N] [--temperature T] [--seed S]
///             [--check all|structure] [--key KEY] [--plan | --ppl FILE | --bench RUNS]
///
/// With --ids it prints ids, with --prompt text. --ppl prints the perplexity of a text in windows
/// of --context tokens (512), each token after the first one once; --bench the median speed of a
/// prompt of 512 tokens and of 128 steps after it, over RUNS runs and one that is not counted.
/// --check says what of the package is compared with its SHA-256 first (all). With --key, a public
/// key as 64 digits of base 16 or in a file (of 32 bytes, or PEM as `openssl pkey -pubout` writes
/// it), nothing is done unless MODEL.bcq.sig says that it signed the package.
/// Exit status: 0, 1 (the runtime said no), 2 (the command line is wrong).
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bcq/runtime.h"
#include "key_text.h"
#include "read_file.h"

namespace {

constexpr int64_t kDefaultTokens = 64;
constexpr int64_t kScoreWindow = 512;
constexpr int64_t kBenchPrompt = 512, kBenchSteps = 128, kMaxRuns = 1000;
constexpr int32_t kSpecialAround = 1;  // flags of bcq_tokenizer_encode
constexpr int32_t kSpecialInText = 2;

constexpr char kUsage[] =
    "usage: bcq-run MODEL.bcq [--ids 1,2,3 | --prompt TEXT] [-n N] [--threads N]\n"
    "               [--kv f32|f16|int8] [--activations exact|int8|int8-token] [--context N]\n"
    "               [--temperature T] [--seed S] [--check all|structure] [--key FILE|HEX]\n"
    "               [--plan | --ppl FILE | --bench RUNS]\n";

/// The command line.
struct Arguments {
  const char* path;
  const char* ids;
  const char* prompt;
  const char* scored;  ///< file of a text
  const char* key;     ///< that must have signed the package: digits, or a file
  int64_t num_tokens, context, num_runs;
  int32_t check;  ///< bcq_check
  float temperature;
  uint64_t seed;
  bool plans;
  bcq_options options;
};

/// Everything that is open; `end` closes it.
struct Run {
  Arguments arguments;
  bcq_package* package;
  bcq_model_info info;
  bcq_model* model;
  bcq_session* session;
  bcq_tokenizer* tokenizer;
  bcq_stream* stream;
  int32_t* ids;  ///< prompt, then what was drawn
  int64_t num_ids, num_prompt;
  void* sampling_scratch;
  float* logits;  ///< a copy that the sampler may write over
};

void end(Run* run) {
  bcq_stream_destroy(run->stream);
  bcq_tokenizer_destroy(run->tokenizer);
  bcq_session_destroy(run->session);
  bcq_model_destroy(run->model);
  bcq_package_close(run->package);
  free(run->ids);
  free(run->sampling_scratch);
  free(run->logits);
}

/// Prints why, if the runtime said no.
bool said_yes(bcq_status status) {
  if (status != BCQ_OK) fprintf(stderr, "bcq-run: %s\n", bcq_error_text());
  return status == BCQ_OK;
}

bool complain(const char* what, const char* about) {
  fprintf(stderr, "bcq-run: %s %s\n", what, about);
  return false;
}

double seconds() {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

bool parse_number(const char* text, int64_t least, int64_t most, int64_t* number) {
  char* last = nullptr;
  errno = 0;
  const long long value = strtoll(text, &last, 10);
  *number = value;
  return last != text && *last == '\0' && errno == 0 && value >= least && value <= most;
}

/// Index of `text` among `num` choices, -1 if it is none of them.
int32_t choice(const char* text, const char* const* choices, int32_t num) {
  for (int32_t i = 0; i < num; i++)
    if (strcmp(text, choices[i]) == 0) return i;
  return -1;
}

/// One option that takes a value.
bool parse_option(const char* name, const char* value, Arguments* a) {
  constexpr const char* kCaches[] = {"f32", "f16", "int8"};
  constexpr const char* kChecks[] = {"structure", "all"};
  constexpr const char* kActivations[] = {"exact", "int8", "int8-token"};
  int64_t number = 0;
  bool fits = true;
  if (strcmp(name, "--ids") == 0) {
    a->ids = value;
  } else if (strcmp(name, "--prompt") == 0) {
    a->prompt = value;
  } else if (strcmp(name, "--ppl") == 0) {
    a->scored = value;
  } else if (strcmp(name, "--bench") == 0) {
    fits = parse_number(value, 1, kMaxRuns, &a->num_runs);
  } else if (strcmp(name, "-n") == 0) {
    fits = parse_number(value, 0, INT32_MAX, &a->num_tokens);
  } else if (strcmp(name, "--context") == 0) {
    fits = parse_number(value, 1, INT32_MAX, &a->context);
  } else if (strcmp(name, "--threads") == 0) {
    fits = parse_number(value, 0, 256, &number);
    a->options.num_threads = (int32_t)number;
  } else if (strcmp(name, "--seed") == 0) {
    fits = parse_number(value, 0, INT64_MAX, &number);
    a->seed = (uint64_t)number;
  } else if (strcmp(name, "--temperature") == 0) {
    char* last = nullptr;
    a->temperature = strtof(value, &last);
    fits = last != value && *last == '\0' && a->temperature >= 0 && a->temperature <= 100;
  } else if (strcmp(name, "--kv") == 0) {
    a->options.kv_type = choice(value, kCaches, 3);
    fits = a->options.kv_type >= 0;
  } else if (strcmp(name, "--check") == 0) {
    a->check = choice(value, kChecks, 2);
    fits = a->check >= 0;
  } else if (strcmp(name, "--key") == 0) {
    a->key = value;
  } else if (strcmp(name, "--activations") == 0) {
    a->options.activations = choice(value, kActivations, 3);
    fits = a->options.activations >= 0;
  } else {
    return complain("there is no option", name);
  }
  return fits || complain(name, "cannot have this value");
}

bool parse(int argc, char** argv, Arguments* a) {
  a->num_tokens = kDefaultTokens;
  a->options.activations = -1;
  a->options.kv_type = BCQ_KV_F16;
  a->check = BCQ_CHECK_ALL;
  for (int i = 1; i < argc; i++) {
    const char* const word = argv[i];
    if (strcmp(word, "--plan") == 0) {
      a->plans = true;
    } else if (word[0] != '-') {
      if (a->path != nullptr) return complain("one model at a time, not also", word);
      a->path = word;
    } else if (i + 1 == argc) {
      return complain(word, "needs a value, or is no option");
    } else if (!parse_option(word, argv[++i], a)) {
      return false;
    }
  }
  if (a->path == nullptr) return complain("which", "model?");
  if (a->key != nullptr && a->check != BCQ_CHECK_ALL)
    return complain("--key needs", "--check all: a signature is of the sections' digests");
  const bool has_prompt = a->ids != nullptr || a->prompt != nullptr;
  const int num_modes = a->plans + (a->scored != nullptr) + (a->num_runs > 0);
  if (num_modes > 1 || (num_modes == 0 && !has_prompt) ||
      (a->ids != nullptr && a->prompt != nullptr) || (has_prompt && num_modes > 0 && !a->plans))
    return complain("one of --ids, --prompt, --ppl, --bench", "and --plan is needed");
  return true;
}

/// Ids of "1,2,3" at the start of `run->ids`, which has room for them.
bool parse_ids(const char* text, Run* run) {
  while (*text != '\0') {
    char* last = nullptr;
    const long id = strtol(text, &last, 10);
    if (last == text || (*last != ',' && *last != '\0') || id < 0 || id > INT32_MAX) return false;
    run->ids[run->num_ids++] = (int32_t)id;
    text = *last == ',' ? last + 1 : last;
  }
  return run->num_ids > 0;
}

bool open_tokenizer(Run* run) {
  const void* section = nullptr;
  size_t bytes = 0;
  if (!said_yes(bcq_package_section(run->package, 64, &section, &bytes))) return false;
  if (section == nullptr)
    return complain(run->arguments.path, "holds no tokenizer; give the prompt as --ids");
  return said_yes(bcq_tokenizer_create(section, bytes, &run->tokenizer)) &&
         said_yes(bcq_stream_create(run->tokenizer, 1, &run->stream));
}

/// Ids of `bytes` bytes of text into run->ids, with room for `more` behind them.
bool encode(Run* run, const char* text, size_t bytes, int32_t flags, int64_t more) {
  size_t num = 0;
  if (!open_tokenizer(run) ||
      !said_yes(bcq_tokenizer_encode(run->tokenizer, text, bytes, flags, nullptr, 0, &num)))
    return false;
  run->ids = (int32_t*)malloc((num + (size_t)more + 1) * sizeof(int32_t));
  if (run->ids == nullptr) return complain("no memory for", "the text");
  run->num_ids = (int64_t)num;
  return said_yes(bcq_tokenizer_encode(run->tokenizer, text, bytes, flags, run->ids, num, &num));
}

/// Ids of the prompt, with room for the tokens to come.
bool read_prompt(Run* run) {
  const Arguments& a = run->arguments;
  if (a.prompt != nullptr) {
    const int32_t flags = kSpecialAround | kSpecialInText;
    if (!encode(run, a.prompt, strlen(a.prompt), flags, a.num_tokens)) return false;
  } else {
    const size_t most = strlen(a.ids) + (size_t)a.num_tokens + 1;  // ids have a digit each
    run->ids = (int32_t*)malloc(most * sizeof(int32_t));
    if (run->ids == nullptr) return complain("no memory for", "the prompt");
    if (!parse_ids(a.ids, run)) return complain("--ids takes numbers like", "1,2,3");
  }
  run->num_prompt = run->num_ids;
  return run->num_ids > 0 || complain("the prompt", "has no tokens");
}

/// The public key of --key: 64 digits, or a file.
bool read_key(const char* value, uint8_t* key) {
  if (bcq::key_of_digits(value, key)) return true;
  size_t bytes = 0;
  char* const text = bcq::read_file(value, &bytes);
  if (text == nullptr) return complain("cannot read the key", value);
  const bool is_key = bcq::key_of_file(text, bytes, key);
  free(text);
  return is_key || complain("there is no public key of Ed25519 in", value);
}

/// Whether MODEL.bcq.sig says that the wanted key signed the package, which is wholly checked.
bool check_signature(Run* run) {
  uint8_t key[bcq::kKeyBytes];
  if (!read_key(run->arguments.key, key)) return false;
  const size_t room = strlen(run->arguments.path) + sizeof(".sig");
  char* const path = (char*)malloc(room);
  if (path == nullptr) return complain("no memory for", "a name");
  snprintf(path, room, "%s.sig", run->arguments.path);
  size_t bytes = 0;
  char* const signature = bcq::read_file(path, &bytes);
  if (signature == nullptr) complain("cannot read", path);
  free(path);
  const bcq_status status = bcq_package_check_signature(run->package, signature, bytes, key);
  free(signature);
  return said_yes(status);
}

/// Opens and checks the package, on as many threads as the model will have.
bool open_package(Run* run) {
  const Arguments& a = run->arguments;
  return said_yes(bcq_package_open(a.path, BCQ_CHECK_STRUCTURE, &run->package)) &&
         (a.check != BCQ_CHECK_ALL ||
          said_yes(bcq_package_check(run->package, a.options.num_threads))) &&
         (a.key == nullptr || check_signature(run)) &&
         said_yes(bcq_package_info(run->package, &run->info));
}

/// Ids of the text that is to be scored, at least two.
bool read_scored(Run* run) {
  size_t bytes = 0;
  char* const text = bcq::read_file(run->arguments.scored, &bytes);
  if (text == nullptr) return complain("cannot read", run->arguments.scored);
  const bool is_encoded = encode(run, text, bytes, kSpecialAround, 0);
  free(text);
  if (!is_encoded) return false;
  return run->num_ids > 1 || complain("there are less than two tokens in", run->arguments.scored);
}

bool print_plan(const Run& run, int64_t context) {
  bcq_plan plan;
  const bcq_status status = bcq_plan_model(run.package, &run.arguments.options, context, &plan);
  if (!said_yes(status)) return false;
  printf("context   %12lld tokens\n", (long long)context);
  const struct {
    const char* name;
    uint64_t bytes;
  } lines[] = {{"weights", plan.weight_bytes},
               {"tables", plan.table_bytes},
               {"scratch", plan.scratch_bytes},
               {"caches", plan.kv_bytes},
               {"total", plan.total_bytes}};
  for (const auto& line : lines)
    printf("%-9s %12llu bytes\n", line.name, (unsigned long long)line.bytes);
  return true;
}

bool open_model(Run* run, int64_t context) {
  const size_t vocab = (size_t)run->info.vocab_size;
  run->sampling_scratch = malloc(vocab * 8);
  run->logits = (float*)malloc(vocab * sizeof(float));
  if (run->sampling_scratch == nullptr || run->logits == nullptr)
    return complain("no memory for", "sampling");
  return said_yes(bcq_model_create(run->package, &run->arguments.options, &run->model)) &&
         said_yes(bcq_session_create(run->model, context, &run->session));
}

/// Draws the next id from the logits of the last append.
bool draw(Run* run, const float* logits, int32_t* id) {
  const int64_t vocab = run->info.vocab_size;
  const bcq_sampling sampling = {run->arguments.temperature, 0, 1, 0, 1, 0};
  memcpy(run->logits, logits, (size_t)vocab * sizeof(float));
  return said_yes(bcq_sample(run->logits, vocab, &sampling, run->ids, run->num_ids,
                             &run->arguments.seed, run->sampling_scratch, (size_t)vocab * 8, id));
}

bool is_end(const bcq_model_info& info, int32_t id) {
  for (int32_t i = 0; i < info.num_eos; i++)
    if (info.eos[i] == id) return true;
  return false;
}

bool print_id(Run* run, int32_t id) {
  if (run->stream == nullptr) {
    printf(run->num_ids > run->num_prompt ? ",%d" : "%d", (int)id);
    fflush(stdout);
    return true;
  }
  const char* text = nullptr;
  size_t bytes = 0;
  if (!said_yes(bcq_stream_push(run->stream, id, &text, &bytes))) return false;
  fwrite(text, 1, bytes, stdout);
  fflush(stdout);
  return true;
}

bool print_rest(Run* run) {
  const char* text = nullptr;
  size_t bytes = 0;
  if (run->stream != nullptr && !said_yes(bcq_stream_end(run->stream, &text, &bytes))) return false;
  if (bytes > 0) fwrite(text, 1, bytes, stdout);
  printf("\n");
  return true;
}

/// Tokens until an end token, `-n`, or a full context.
bool generate(Run* run, int64_t context) {
  const double start = seconds();
  const float* logits = nullptr;
  if (!said_yes(bcq_session_append(run->session, run->ids, run->num_prompt, &logits))) return false;
  const double prompt_end = seconds();
  int64_t num_steps = 0;
  while (run->num_ids - run->num_prompt < run->arguments.num_tokens) {
    int32_t id = 0;
    if (!draw(run, logits, &id)) return false;
    if (is_end(run->info, id)) break;
    if (!print_id(run, id)) return false;
    run->ids[run->num_ids++] = id;
    if (run->num_ids - run->num_prompt == run->arguments.num_tokens || run->num_ids > context)
      break;
    if (!said_yes(bcq_session_append(run->session, &id, 1, &logits))) return false;
    num_steps++;
  }
  const double prompt_s = prompt_end - start, steps_s = seconds() - prompt_end;
  if (!print_rest(run)) return false;
  fprintf(stderr, "%s: prompt %lld tokens, %.1f tokens/s; then %lld steps, %.1f tokens/s\n",
          bcq_model_tier(run->model), (long long)run->num_prompt,
          (double)run->num_prompt / (prompt_s > 0 ? prompt_s : 1e-9), (long long)num_steps,
          (double)num_steps / (steps_s > 0 ? steps_s : 1e-9));
  return true;
}

// ---- measurements ----

/// Perplexity of run->ids in windows of `context` tokens, which share one, so that every token but
/// the first is foretold once.
bool score(Run* run, int64_t context) {
  if (context < 2) return complain("--ppl needs", "a context of two tokens");
  double nll = 0;
  for (int64_t first = 0; first + 1 < run->num_ids; first += context - 1) {
    const int64_t left = run->num_ids - first, num = left < context ? left : context;
    double more = 0;
    if (!said_yes(bcq_session_truncate(run->session, 0)) ||
        !said_yes(bcq_session_score(run->session, run->ids + first, num, &more)))
      return false;
    nll += more;
  }
  printf("perplexity %.6f of %lld tokens in windows of %lld\n",
         exp(nll / (double)(run->num_ids - 1)), (long long)run->num_ids, (long long)context);
  return true;
}

/// Seconds of a prompt and of single steps after it, without sampling.
bool time_once(Run* run, double* prompt_s, double* steps_s) {
  int32_t ids[kBenchPrompt + kBenchSteps];
  for (int64_t i = 0; i < kBenchPrompt + kBenchSteps; i++)
    ids[i] = (int32_t)((i * 7919 + 11) % run->info.vocab_size);
  const float* logits = nullptr;
  if (!said_yes(bcq_session_truncate(run->session, 0))) return false;
  const double start = seconds();
  if (!said_yes(bcq_session_append(run->session, ids, kBenchPrompt, &logits))) return false;
  const double middle = seconds();
  for (int64_t i = 0; i < kBenchSteps; i++)
    if (!said_yes(bcq_session_append(run->session, ids + kBenchPrompt + i, 1, &logits)))
      return false;
  *prompt_s = middle - start, *steps_s = seconds() - middle;
  return true;
}

int compare(const void* a, const void* b) {
  const double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

double median(double* values, int64_t num) {
  qsort(values, (size_t)num, sizeof(double), compare);
  return (values[(num - 1) / 2] + values[num / 2]) / 2;
}

bool bench(Run* run) {
  const int64_t num = run->arguments.num_runs;
  double prompts[kMaxRuns], steps[kMaxRuns];
  if (!time_once(run, prompts, steps)) return false;  // touches every page first
  for (int64_t i = 0; i < num; i++)
    if (!time_once(run, prompts + i, steps + i)) return false;
  const double prompt_s = median(prompts, num), steps_s = median(steps, num);
  printf("%s, median of %lld\n", bcq_model_tier(run->model), (long long)num);
  printf("prefill %lld tokens in %.6f s: %.1f tokens/s\n", (long long)kBenchPrompt, prompt_s,
         (double)kBenchPrompt / prompt_s);
  printf("decode %lld tokens in %.6f s: %.1f tokens/s\n", (long long)kBenchSteps, steps_s,
         (double)kBenchSteps / steps_s);
  return true;
}

/// Tokens of the session, where the command line does not say it.
int64_t default_context(const Run& run) {
  const Arguments& a = run.arguments;
  const int64_t most = run.info.max_positions;
  int64_t wanted = most;
  if (a.num_runs > 0)
    wanted = kBenchPrompt + kBenchSteps;
  else if (a.scored != nullptr)
    wanted = kScoreWindow;
  else if (run.num_prompt > 0)
    wanted = run.num_prompt + a.num_tokens;
  return wanted < most ? wanted : most;
}

bool work(Run* run) {
  const Arguments& a = run->arguments;
  if (!open_package(run)) return false;
  if ((a.ids != nullptr || a.prompt != nullptr) && !read_prompt(run)) return false;
  if (a.scored != nullptr && !read_scored(run)) return false;
  const int64_t context = a.context > 0 ? a.context : default_context(*run);
  if (a.plans) return print_plan(*run, context);
  if (!open_model(run, context)) return false;
  if (a.scored != nullptr) return score(run, context);
  return a.num_runs > 0 ? bench(run) : generate(run, context);
}

}  // namespace

int main(int argc, char** argv) {
  Run run = {};
  if (!parse(argc, argv, &run.arguments)) {
    fputs(kUsage, stderr);
    return 2;
  }
  const bool worked = work(&run);
  end(&run);
  return worked ? 0 : 1;
}
