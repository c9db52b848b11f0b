# A whole decoder: its blocks, caches and scratch, and one call a step that allocates nothing.
from cpython.exc cimport PyErr_CheckSignals
from libc.stdlib cimport calloc


cdef extern from "bcq/decoder.h" nogil:
    ctypedef struct bcq_dense:
        const bcq_weight* weight
        const float* bias

    ctypedef struct bcq_block:
        bcq_dense q, k, v, o, gate, up, down
        const float* attention_norm
        const float* mlp_norm
        const float* q_norm
        const float* k_norm
        int64_t window

    ctypedef struct bcq_decoder:
        int64_t hidden, intermediate, num_heads, num_kv_heads, head_dim
        float eps
        const float* rope_cos
        const float* rope_sin
        int64_t num_positions
        const float* alibi
        bcq_precision precision

    bcq_status bcq_decoder_scratch(const bcq_decoder* decoder, int64_t num_tokens, size_t* bytes)
    bcq_status bcq_decoder_block(const bcq_context* context, const bcq_decoder* decoder,
                                 const bcq_block* block, const bcq_kv* kv, float* x,
                                 int64_t num_tokens, int64_t first_position, void* scratch,
                                 size_t scratch_bytes)
    bcq_status bcq_decoder_head(const bcq_context* context, const bcq_decoder* decoder,
                                const float* norm, const bcq_weight* head, const float* x,
                                int64_t num_tokens, float* logits, void* scratch,
                                size_t scratch_bytes)


cdef enum:
    SIGNAL_TOKENS = 16  # a step of more tokens looks for Ctrl-C after each block


cdef class NativeDecoder:
    """A decoder of packed weights with its caches. Not for several threads at once.

    Made empty; `add_block` once a layer, `reserve`, then `forward`.

    Args:
        context: who computes.
        embedding, head: (V, hidden); they may be one object.
        norm: float32 (hidden), before the head.
        num_layers, intermediate, num_heads, num_kv_heads, head_dim, eps: of the model.
        precision: EXACT, INT8 or INT8_TOKEN.
        kv_type: KV_F32, KV_F16 or KV_INT8.
        max_tokens: of one `forward`.
        alibi: float32 (num_heads), slopes; None = none.
    Raises:
        ShapeError: an array does not fit.
        KernelError: the kernels refuse a size.
    """

    cdef bcq_decoder c
    cdef bcq_block* blocks
    cdef const bcq_kv** caches
    cdef const float* norm
    cdef float* x        # [max_tokens][hidden], the residual stream
    cdef float* nothing  # [num_kv_heads * head_dim] zeros: what a truncated position holds
    cdef void* scratch
    cdef size_t scratch_bytes
    cdef int kv_type
    cdef int64_t num_blocks
    cdef list kept, tables, kv
    cdef PackedWeight embedding, head
    cdef readonly Context context
    cdef readonly int64_t num_layers, max_tokens, capacity, position

    def __cinit__(self, Context context not None, PackedWeight embedding not None,
                  PackedWeight head not None, norm, *, int64_t num_layers, int64_t intermediate,
                  int64_t num_heads, int64_t num_kv_heads, int64_t head_dim, float eps,
                  int precision, int kv_type, int64_t max_tokens, alibi=None):
        if not (0 < num_layers < 1 << 20 and max_tokens > 0 and head_dim > 0 and num_kv_heads > 0):
            raise ShapeError(
                f"a decoder of {num_layers} layers, {num_kv_heads} heads of {head_dim} and "
                f"{max_tokens} tokens a step; each must be at least 1"
            )
        self.context, self.embedding, self.head = context, embedding, head
        self.kept, self.tables, self.kv = [], [], []
        self.num_layers, self.max_tokens, self.kv_type = num_layers, max_tokens, kv_type
        self.c.hidden, self.c.intermediate = embedding.c.in_features, intermediate
        self.c.num_heads, self.c.num_kv_heads = num_heads, num_kv_heads
        self.c.head_dim, self.c.eps = head_dim, eps
        self.c.precision = <bcq_precision>precision
        self.norm = self.keep(norm, "norm", self.c.hidden)
        self.c.alibi = self.keep(alibi, "alibi", num_heads)
        if head.c.in_features != self.c.hidden:
            raise ShapeError(f"head is {head}; {self.c.hidden} inputs are needed, as {embedding}")
        sentence = f"scratch for {max_tokens} tokens of {head_dim} x {num_heads} heads"
        check(bcq_decoder_scratch(&self.c, max_tokens, &self.scratch_bytes), sentence)
        self.scratch = aligned_bytes(self.scratch_bytes)
        self.x = <float*>aligned_bytes(max_tokens * self.c.hidden * sizeof(float))
        self.nothing = <float*>zeroed(num_kv_heads * head_dim, sizeof(float))
        self.blocks = <bcq_block*>zeroed(num_layers, sizeof(bcq_block))
        self.caches = <const bcq_kv**>zeroed(num_layers, sizeof(void*))

    def __dealloc__(self):
        free(self.scratch)
        free(self.x)
        free(self.nothing)
        free(self.blocks)
        free(self.caches)

    @property
    def vocab_size(self):
        """Logits of a token."""
        return self.head.c.out_features

    @property
    def nbytes(self):
        """Bytes of weights, each blob counted once, and of caches and scratch."""
        blobs = {id(kept): kept for kept in self.kept if isinstance(kept, PackedWeight)}
        blobs |= {id(self.embedding): self.embedding, id(self.head): self.head}
        return (sum(blob.nbytes for blob in blobs.values())
                + sum(cache.nbytes for cache in self.kv)
                + self.scratch_bytes + self.max_tokens * self.c.hidden * sizeof(float))

    cdef const float* keep(self, source, str name, int64_t size) except? NULL:
        """A row of `size` floats that lives as long as this object; NULL for None."""
        if source is None:
            return NULL
        cdef Array a = array_of(source, name, "f", 1, False)
        want_shape(a, name, 1, size)
        self.kept.append(a)
        return <const float*>a.data

    cdef int fill(self, bcq_dense* dense, str name, weight, bias) except -1:
        cdef PackedWeight w = weight
        if w is None:
            raise ShapeError(f"{name} is None; a packed weight is needed")
        dense.weight = &w.c
        dense.bias = self.keep(bias, f"bias of {name}", w.c.out_features)
        self.kept.append(w)
        return 0

    def add_block(self, weights, biases, attention_norm, mlp_norm, q_norm=None, k_norm=None,
                  int64_t window=0):
        """The next layer.

        Args:
            weights: PackedWeight of q, k, v, o, gate, up and down.
            biases: float32 (N) or None for each of them.
            attention_norm, mlp_norm: float32 (hidden). q_norm, k_norm: float32 (head_dim) or None.
            window: tokens that a token sees, itself included; 0 = all.
        Raises:
            ShapeError: there are num_layers already, or an array does not fit.
        """
        if self.num_blocks == self.num_layers:
            raise ShapeError(f"all {self.num_layers} layers are there already")
        cdef bcq_block* b = &self.blocks[self.num_blocks]
        q, k, v, o, gate, up, down = weights
        q_bias, k_bias, v_bias, o_bias, gate_bias, up_bias, down_bias = biases
        self.fill(&b.q, "q", q, q_bias)
        self.fill(&b.k, "k", k, k_bias)
        self.fill(&b.v, "v", v, v_bias)
        self.fill(&b.o, "o", o, o_bias)
        self.fill(&b.gate, "gate", gate, gate_bias)
        self.fill(&b.up, "up", up, up_bias)
        self.fill(&b.down, "down", down, down_bias)
        b.attention_norm = self.keep(attention_norm, "attention_norm", self.c.hidden)
        b.mlp_norm = self.keep(mlp_norm, "mlp_norm", self.c.hidden)
        b.q_norm = self.keep(q_norm, "q_norm", self.c.head_dim)
        b.k_norm = self.keep(k_norm, "k_norm", self.c.head_dim)
        b.window = window
        self.num_blocks += 1

    def reserve(self, int64_t capacity, cos=None, sin=None):
        """Make empty caches; positions held so far are forgotten.

        Args:
            capacity: positions; rounded up to a multiple of 16.
            cos, sin: float32 (P, head_dim / 2), P >= capacity; None = no rotation.
        Raises:
            ShapeError: an array does not fit.
            KernelError: the kernels refuse a size, or there is no memory.
        """
        cdef Array c = None if cos is None else array_of(cos, "cos", "f", 2, False)
        cdef Array s = None if sin is None else array_of(sin, "sin", "f", 2, False)
        cdef KvCache cache
        cdef int64_t i
        if (c is None) != (s is None) or (c is not None and c.rows < capacity):
            raise ShapeError(f"rotation tables for {capacity} positions are needed, both or none")
        self.position, self.capacity, self.kv = 0, 0, []
        if c is not None:
            for table, name in ((c, "cos"), (s, "sin")):
                want_shape(table, name, c.rows, self.c.head_dim // 2)
                want_contiguous(table, name)
            self.c.rope_cos, self.c.rope_sin = <const float*>c.data, <const float*>s.data
            self.c.num_positions = c.rows
        self.tables = [c, s]
        for i in range(self.num_layers):
            cache = KvCache(self.kv_type, self.c.num_kv_heads, self.c.head_dim,
                            (capacity + 15) // 16 * 16)
            self.kv.append(cache)
            self.caches[i] = &cache.c
        self.capacity = capacity

    def forward(self, ids, logits=None):
        """Append tokens, and give the logits of the last ones.

        Args:
            ids: int32 (T), T <= max_tokens.
            logits: float32 (R, V), R <= T: filled for the last R tokens; None = none are wanted.
        Raises:
            ShapeError: an array does not fit, or there is no room for T more positions.
            KernelError: an id is not of the vocabulary, or a layer's weights do not fit.
            KeyboardInterrupt: Ctrl-C during a long step; the position stays what it was.
        """
        cdef Array i = array_of(ids, "ids", "i", 1, False)
        cdef Array out = None if logits is None else array_of(logits, "logits", "f", 2, True)
        cdef int64_t before = self.position, layer = 0
        cdef int64_t rows = 0 if out is None else out.rows
        cdef float* to = NULL if out is None else <float*>out.data
        cdef bcq_status status = BCQ_OK
        self.check_step(i.columns, out)
        self.context.pool.enter()
        try:
            with nogil:
                status = self.run(<const int32_t*>i.data, i.columns, rows, to, &layer)
            if status != BCQ_OK:
                check(status, f"layer {layer} of {self.num_layers} on {i.columns} tokens from "
                              f"position {before}")
            self.position = before + i.columns
        finally:
            if self.position == before:
                self.clear(before, before + i.columns)
            self.context.pool.leave()

    cdef int check_step(self, int64_t tokens, Array out) except -1:
        """Refuse a step that does not fit."""
        if out is not None:
            want_shape(out, "logits", -1, self.head.c.out_features)
            want_contiguous(out, "logits")
        if not 0 < tokens <= self.max_tokens or (out is not None and out.rows > tokens):
            raise ShapeError(
                f"{tokens} tokens and {0 if out is None else out.rows} rows of logits; 1 .. "
                f"{self.max_tokens} tokens, and no more logits than tokens, make a step"
            )
        if tokens > self.capacity - self.position:
            raise ShapeError(
                f"{tokens} more tokens after {self.position} do not fit into a cache of "
                f"{self.capacity} positions; reserve more"
            )
        if self.num_blocks != self.num_layers:
            raise ShapeError(f"{self.num_blocks} of {self.num_layers} layers are there; add all")
        return 0

    cdef bcq_status run(self, const int32_t* ids, int64_t tokens, int64_t rows, float* logits,
                        int64_t* layer) except? BCQ_OUT_OF_MEMORY nogil:
        """All layers and the head; `layer` says how far it came, -1 and num_layers the ends."""
        cdef bcq_status status
        cdef int64_t at
        layer[0] = -1
        status = bcq_embed(&self.context.c, &self.embedding.c, ids, tokens, self.x, self.c.hidden)
        if status != BCQ_OK:
            return status
        for at in range(self.num_layers):
            layer[0] = at
            status = bcq_decoder_block(&self.context.c, &self.c, &self.blocks[at],
                                       self.caches[at], self.x, tokens, self.position,
                                       self.scratch, self.scratch_bytes)
            if status != BCQ_OK:
                return status
            if tokens > SIGNAL_TOKENS:
                with gil:
                    PyErr_CheckSignals()
        layer[0] = self.num_layers
        if rows == 0:
            return BCQ_OK
        return bcq_decoder_head(
            &self.context.c, &self.c, self.norm, &self.head.c,
            self.x + (tokens - rows) * self.c.hidden, rows, logits, self.scratch,
            self.scratch_bytes,
        )

    cdef void clear(self, int64_t first, int64_t last) noexcept:
        """Zeros into positions first .. last - 1, as the kernels want what is unused."""
        cdef int64_t layer, at, width = self.c.num_kv_heads * self.c.head_dim
        with nogil:
            for layer in range(self.num_layers):
                for at in range(first, last):
                    bcq_kv_append(&self.context.c, self.caches[layer], at, 1, self.nothing, width,
                                  self.nothing, width)

    def truncate(self, int64_t position):
        """Forget everything from `position` on.

        Raises:
            ShapeError: so many positions are not held.
        """
        if not 0 <= position <= self.position:
            raise ShapeError(f"truncate to {position}: {self.position} positions are held")
        self.context.pool.enter()
        self.clear(position, self.position)
        self.context.pool.leave()
        self.position = position

    def reset(self):
        """Forget all positions; the memory stays."""
        self.truncate(0)


cdef void* zeroed(size_t count, size_t size) except NULL:
    """Memory of zeros; free() frees it."""
    cdef void* memory = calloc(count, size)
    if memory is NULL:
        raise KernelError(f"the system gave no {count * size} bytes of memory")
    return memory
