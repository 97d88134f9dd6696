/* The loops over the QUIC packets of a run, in C: what _quic/runs.py of allswell does in Python.

Theory of operation. Two functions without state. They have no cryptography of their own: they call the AEAD and the
AES-ECB of the Python package `cryptography`, whose methods they are given. All that C saves is the Python around those
calls. Whatever these functions make of a packet, the Python code makes of it too. It is the judge, and the tests give
the same packets to both.

- open_run takes the protection off the packets of a run (RFC 9001 section 5), up to the first that does not open.
  Packets that follow each other and hold nothing but STREAM frames (RFC 9000 section 19.8) become one *stretch*: the
  data of each stream, joined. Any other packet is given as its payload. A frame that does not continue the data of its
  stream begins a new stretch. Whether data are wanted is for the caller to decide: limits, offsets, streams.
- seal_run makes packets with equal parts of a stream's data, and protects them.

A hostile peer writes the bytes that are read here. So:

- Each packet has its own bounds, which lie within the run: `sample_end <= size <= LARGEST_DATAGRAM`.
- Frames are read by `Reader` only, which does not pass the end of the payload.
- A stretch has room for the payloads of all packets of a call, and for so many streams and frames. A packet that does
  not fit into the rest begins a new one. A packet that does not fit into an empty one is given as its payload.
- Lengths are compared with what is left, never added to positions. Integers of QUIC are below 2^62, so the sum of two
  does not overflow 64 bits.

What Python code gets to see (nonces, headers, ciphertexts, room for plaintexts) are Python's own objects, not memory of
these functions. Nothing is shared between calls, so it needs no global interpreter lock: a connection's packets are
one thread's, and so are the objects that it gives. Only functions of the stable ABI of CPython 3.11 are used. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Raised by one when the meaning of an argument or a result changes. allswell uses the number that it knows only. */
#define ABI 1

enum {
    NONCE = 12,                 /* RFC 9001 section 5.3: bytes of a nonce, and of the AEAD's tag */
    TAG = 16,
    SAMPLE = 16,                /* section 5.4.2: a sample's size, and where it begins, from the packet number on */
    SAMPLE_OFFSET = 4,
    PROTECTED_BITS = 0x1f,      /* section 5.4.1: the bits of a short header's first byte that are protected */
    FORM = 0xdc,                /* RFC 9000 section 17.3.1: header form, fixed bit, reserved bits, key phase */
    LARGEST_CID = 20,           /* section 17.2 */
    NUMBER_SIZE = 2,            /* bytes of a packet number that is sent */
    STREAM = 0x08,              /* section 19.8: the frame types, their bits */
    STREAM_TYPES = 0xf8,
    OFF = 0x04,
    LEN = 0x02,
    FIN = 0x01,
    /* As in runs.py: */
    LARGEST_DATAGRAM = 1500,
    MOST_OPENED = 192,          /* packets in one go */
    MOST_SEALED = 64,
    FEW = 16,                   /* STREAM frames of a packet */
    /* The room of a stretch. */
    MOST_PIECES = 16,
    MOST_PARTS = 256
};
#define LARGEST_INTEGER (((int64_t)1 << 62) - 1)

/* Data of one stream, without a gap. */
typedef struct {
    uint64_t stream, offset, size;
    int fin;
} Piece;

/* The data of one frame: of which piece they are, and where they lie in the room. */
typedef struct {
    int piece;
    size_t start, size;
} Part;

typedef struct {
    int first;                  /* byte of the last packet's header */
    int64_t number;             /* of the first packet */
    int64_t count;              /* of packets; none: it is empty, and the others mean nothing */
    int pieces, parts;
    size_t used, size;          /* bytes of the room */
    Piece piece[MOST_PIECES];
    Part part[MOST_PARTS];
    unsigned char *room;
} Stretch;

typedef struct {
    const unsigned char *at, *end;
} Reader;

/* A variable-length integer (RFC 9000 section 16). Return whether it is all there. */
static int
read_integer(Reader *reader, uint64_t *value)
{
    if (reader->at == reader->end)
        return 0;
    ptrdiff_t size = (ptrdiff_t)1 << (*reader->at >> 6);
    if (reader->end - reader->at < size)
        return 0;
    *value = *reader->at++ & 0x3f;
    while (--size)
        *value = *value << 8 | *reader->at++;
    return 1;
}

/* Add a STREAM frame. Return whether it is one, and fits. */
static int
add_frame(Stretch *stretch, Reader *reader)
{
    int type = *reader->at++;
    uint64_t stream, offset = 0, size;
    if ((type & STREAM_TYPES) != STREAM || !read_integer(reader, &stream))
        return 0;
    if (type & OFF && !read_integer(reader, &offset))
        return 0;
    size = (uint64_t)(reader->end - reader->at);
    if (type & LEN && (!read_integer(reader, &size) || size > (uint64_t)(reader->end - reader->at)))
        return 0;
    if ((size == 0 && !(type & FIN)) || stretch->parts == MOST_PARTS || size > stretch->size - stretch->used)
        return 0;
    int at = 0;
    while (at < stretch->pieces && stretch->piece[at].stream != stream)
        at++;
    Piece *piece = &stretch->piece[at];
    if (at == stretch->pieces) {
        if (at == MOST_PIECES)
            return 0;
        *piece = (Piece){stream, offset, 0, 0};
        stretch->pieces++;
    }
    if (piece->fin || offset != piece->offset + piece->size)
        return 0;
    piece->size += size;
    piece->fin = type & FIN;
    stretch->part[stretch->parts++] = (Part){at, stretch->used, (size_t)size};
    memcpy(stretch->room + stretch->used, reader->at, (size_t)size);
    stretch->used += (size_t)size;
    reader->at += size;
    return 1;
}

/* Add a packet. Return whether it follows those that are there, and holds only STREAM frames that fit. If not, nothing
has changed. */
static int
add_packet(Stretch *stretch, int first, int64_t number, const unsigned char *payload, Py_ssize_t size)
{
    Piece piece[MOST_PIECES];
    int pieces = stretch->pieces, parts = stretch->parts, frames = 0;
    size_t used = stretch->used;
    if (size == 0 || (stretch->count && number != stretch->number + stretch->count))
        return 0;
    memcpy(piece, stretch->piece, (size_t)pieces * sizeof(Piece));
    Reader reader = {payload, payload + size};
    while (reader.at < reader.end)
        if (frames++ == FEW || !add_frame(stretch, &reader)) {
            memcpy(stretch->piece, piece, (size_t)pieces * sizeof(Piece));
            stretch->pieces = pieces, stretch->parts = parts, stretch->used = used;
            return 0;
        }
    if (!stretch->count++)
        stretch->number = number;
    stretch->first = first;
    return 1;
}

/* Append (first, number, count, content) to the list, and drop the reference to the content. Return -1 on error. */
static int
append(PyObject *list, int first, int64_t number, int64_t count, PyObject *content)
{
    PyObject *item = content ? Py_BuildValue("(iLLN)", first, (long long)number, (long long)count, content) : NULL;
    int failed = item ? PyList_Append(list, item) : -1;
    Py_XDECREF(item);
    return failed;
}

/* Append a stretch: its content is [(stream, offset, data, fin)]. It is empty then. Return -1 on error. */
static int
append_stretch(PyObject *list, Stretch *stretch)
{
    if (!stretch->count)
        return 0;
    PyObject *content = PyList_New(0);
    for (int at = 0; content && at < stretch->pieces; at++) {
        const Piece *piece = &stretch->piece[at];
        PyObject *data = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)piece->size);
        char *to = data ? PyBytes_AsString(data) : NULL;
        for (int each = 0; to && each < stretch->parts; each++) {
            const Part *part = &stretch->part[each];
            if (part->piece == at) {
                memcpy(to, stretch->room + part->start, part->size);
                to += part->size;
            }
        }
        PyObject *item = !data ? NULL : Py_BuildValue(
            "(KKNi)", (unsigned long long)piece->stream, (unsigned long long)piece->offset, data, piece->fin);
        if (!item || PyList_Append(content, item))
            Py_CLEAR(content);
        Py_XDECREF(item);
    }
    int failed = append(list, stretch->first, stretch->number, stretch->count, content);
    stretch->count = stretch->pieces = stretch->parts = 0;
    stretch->used = 0;
    return failed;
}

/* A packet number from the bits that were sent (RFC 9000 appendix A.3), in the order of aioquic's checks. */
static int64_t
decode_number(int64_t truncated, int bits, int64_t expected)
{
    int64_t window = (int64_t)1 << bits, half = window / 2;
    int64_t candidate = (expected & ~(window - 1)) | truncated;
    if (candidate <= expected - half && candidate < LARGEST_INTEGER + 1 - window)
        return candidate + window;
    if (candidate > expected + half && candidate >= window)
        return candidate - window;
    return candidate;
}

/* RFC 9001 section 5.3. */
static void
make_nonce(unsigned char *nonce, const char *iv, int64_t number)
{
    memcpy(nonce, iv, NONCE);
    for (int each = 1; each <= 8; each++, number >>= 8)
        nonce[NONCE - each] ^= (unsigned char)number;
}

/* The masks of so many samples, as a bytes object. */
static PyObject *
make_masks(PyObject *update, const char *samples, Py_ssize_t count)
{
    PyObject *masks = NULL, *argument = PyBytes_FromStringAndSize(samples, count * SAMPLE);
    if (argument)
        masks = PyObject_CallFunctionObjArgs(update, argument, NULL);
    Py_XDECREF(argument);
    if (masks && (!PyBytes_Check(masks) || PyBytes_Size(masks) != count * SAMPLE)) {
        PyErr_SetString(PyExc_ValueError, "the masks are not as long as the samples");
        Py_CLEAR(masks);
    }
    return masks;
}

/* The four arguments of the AEAD's methods. They are used again for each packet. */
typedef struct {
    PyObject *nonce, *from, *header, *to;       /* bytearrays */
} Buffers;

static int
make_buffers(Buffers *buffers)
{
    buffers->nonce = PyByteArray_FromStringAndSize(NULL, NONCE);
    buffers->from = PyByteArray_FromStringAndSize(NULL, 0);
    buffers->header = PyByteArray_FromStringAndSize(NULL, 0);
    buffers->to = PyByteArray_FromStringAndSize(NULL, 0);
    return buffers->nonce && buffers->from && buffers->header && buffers->to ? 0 : -1;
}

static void
drop_buffers(Buffers *buffers)
{
    Py_CLEAR(buffers->nonce);
    Py_CLEAR(buffers->from);
    Py_CLEAR(buffers->header);
    Py_CLEAR(buffers->to);
}

/* The memory of a bytearray, as long as this; NULL on error. */
static unsigned char *
sized(PyObject *array, Py_ssize_t size)
{
    if (PyByteArray_Size(array) != size && PyByteArray_Resize(array, size))
        return NULL;
    return (unsigned char *)PyByteArray_AsString(array);
}

/* Call a method of the AEAD, for a result of this size. Return what it has written; NULL on error. */
static const unsigned char *
call_aead(PyObject *method, Buffers *buffers, Py_ssize_t expected)
{
    PyObject *size = PyObject_CallFunctionObjArgs(
        method, buffers->nonce, buffers->from, buffers->header, buffers->to, NULL);
    if (!size)
        return NULL;
    Py_ssize_t written = PyLong_AsSsize_t(size);
    Py_DECREF(size);
    if (written == expected && PyByteArray_Size(buffers->to) == expected)
        return (const unsigned char *)PyByteArray_AsString(buffers->to);
    if (!PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "the AEAD has written another size");
    return NULL;
}

PyDoc_STRVAR(open_run_doc,
"open_run(keys, run, ends, index, expected, /)\n--\n\n"
"The packets of a run without their protection, up to the first that does not open.\n\n"
":param keys: (decrypt_into, update, iv, cid, form, InvalidTag): methods of cryptography's AEAD and AES-ECB; 12 bytes;\n"
"    the connection ID; the first byte of headers, without what varies; what decrypt_into raises.\n"
":param ends: where each packet ends.\n"
":param index: of the first one.\n"
":param expected: the packet number that is expected next.\n"
":returns: [(first, number, count, content)]: the first byte of the last packet's header, the number of the first\n"
"    packet, how many follow each other. The content is [(stream, offset, data, fin)], or the payload of one packet.");

static PyObject *
open_run(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *decrypt, *update, *invalid, *ends, *list = NULL, *masks = NULL;
    const char *iv, *cid;
    Py_ssize_t iv_size, cid_size, index, count = 0;
    int form;
    long long expected;
    Py_buffer run;
    Buffers buffers = {0};
    Stretch stretch = {0};
    Py_ssize_t start[MOST_OPENED], size[MOST_OPENED];
    char samples[MOST_OPENED * SAMPLE];

    if (!PyArg_ParseTuple(args, "(OOy#y#iO)y*OnL:open_run", &decrypt, &update, &iv, &iv_size, &cid, &cid_size, &form,
                          &invalid, &run, &ends, &index, &expected))
        return NULL;
    Py_ssize_t number_at = 1 + cid_size, sample_at = number_at + SAMPLE_OFFSET;
    if (iv_size != NONCE || cid_size > LARGEST_CID || index < 0 || expected < 0 || expected > LARGEST_INTEGER + 1) {
        PyErr_SetString(PyExc_ValueError, "an argument is out of range");
        goto done;
    }

    /* The bounds of the packets, and the samples. */
    Py_ssize_t ends_size = PySequence_Size(ends), stop = 0;
    if (ends_size < 0)
        goto done;
    for (Py_ssize_t at = index ? index - 1 : 0; at < ends_size && count < MOST_OPENED; at++) {
        PyObject *item = PySequence_GetItem(ends, at);
        Py_ssize_t end = item ? PyLong_AsSsize_t(item) : -1;
        Py_XDECREF(item);
        if (end == -1 && PyErr_Occurred())
            goto done;
        if (end < stop || end > run.len) {
            PyErr_SetString(PyExc_ValueError, "an end is out of order, or beyond the run");
            goto done;
        }
        if (at >= index) {
            if (end - stop < sample_at + SAMPLE || end - stop > LARGEST_DATAGRAM)
                break;
            start[count] = stop;
            size[count] = end - stop;
            stretch.size += (size_t)size[count];
            memcpy(samples + count * SAMPLE, (const char *)run.buf + stop + sample_at, SAMPLE);
            count++;
        }
        stop = end;
    }

    list = PyList_New(0);
    if (!list || !count)
        goto done;
    stretch.room = PyMem_Malloc(stretch.size);
    if (!stretch.room) {
        PyErr_NoMemory();
        goto failed;
    }
    masks = make_masks(update, samples, count);
    if (!masks || make_buffers(&buffers))
        goto failed;

    for (Py_ssize_t each = 0; each < count; each++) {
        const unsigned char *packet = (const unsigned char *)run.buf + start[each];
        const unsigned char *mask = (const unsigned char *)PyBytes_AsString(masks) + each * SAMPLE;
        int first = packet[0] ^ (mask[0] & PROTECTED_BITS), number_size = (first & 3) + 1;
        if ((first & FORM) != form || memcmp(packet + 1, cid, (size_t)cid_size))
            break;
        /* There are bytes for the number and the tag: the sample's end is 4 + 16 bytes behind number_at. */
        Py_ssize_t header_size = number_at + number_size, payload_size = size[each] - header_size - TAG;
        unsigned char *header = sized(buffers.header, header_size);
        unsigned char *from = header ? sized(buffers.from, size[each] - header_size) : NULL;
        unsigned char *nonce = from ? sized(buffers.nonce, NONCE) : NULL;
        if (!nonce || !sized(buffers.to, payload_size))
            goto failed;
        int64_t truncated = 0;
        memcpy(header, packet, (size_t)number_at);
        header[0] = (unsigned char)first;
        for (int byte = 0; byte < number_size; byte++) {
            header[number_at + byte] = packet[number_at + byte] ^ mask[1 + byte];
            truncated = truncated << 8 | header[number_at + byte];
        }
        memcpy(from, packet + header_size, (size_t)(size[each] - header_size));
        int64_t number = decode_number(truncated, 8 * number_size, expected);
        make_nonce(nonce, iv, number);
        const unsigned char *payload = call_aead(decrypt, &buffers, payload_size);
        if (!payload) {
            if (!PyErr_ExceptionMatches(invalid))
                goto failed;
            PyErr_Clear();
            break;
        }
        if (!add_packet(&stretch, first, number, payload, payload_size)) {
            if (append_stretch(list, &stretch))
                goto failed;
            if (!add_packet(&stretch, first, number, payload, payload_size)
                && append(list, first, number, 1, PyBytes_FromStringAndSize((const char *)payload, payload_size)))
                goto failed;
        }
        if (number > expected)
            expected = number + 1;
    }
    if (!append_stretch(list, &stretch))
        goto done;
failed:
    Py_CLEAR(list);
done:
    drop_buffers(&buffers);
    Py_XDECREF(masks);
    PyMem_Free(stretch.room);
    PyBuffer_Release(&run);
    return list;
}

PyDoc_STRVAR(seal_run_doc,
"seal_run(keys, first, number, head, offset, width, data, chunk, /)\n--\n\n"
"Packets with equal parts of a stream's data, protected.\n\n"
":param keys: (encrypt_into, update, iv, cid): methods of cryptography's AEAD and AES-ECB; 12 bytes; the connection ID.\n"
":param first: the first byte of their headers. It says that packet numbers have two bytes.\n"
":param number: of the first packet.\n"
":param head: the STREAM frames' type (with an offset, without a length) and stream ID.\n"
":param offset: where the data begin in the stream.\n"
":param width: how many bytes the offsets have: 4 or 8.\n"
":param data: a multiple of chunk.\n"
":param chunk: how many bytes each packet gets.");

static PyObject *
seal_run(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *encrypt, *update, *list = NULL, *masks = NULL;
    const char *iv, *cid, *head;
    Py_ssize_t iv_size, cid_size, head_size, chunk;
    int first, width;
    long long number, offset;
    Py_buffer data;
    Buffers buffers = {0};
    char samples[MOST_SEALED * SAMPLE];
    unsigned char header[1 + LARGEST_CID + NUMBER_SIZE];

    if (!PyArg_ParseTuple(args, "(OOy#y#)iLy#Liy*n:seal_run", &encrypt, &update, &iv, &iv_size, &cid, &cid_size, &first,
                          &number, &head, &head_size, &offset, &width, &data, &chunk))
        return NULL;
    Py_ssize_t count = chunk > 0 ? data.len / chunk : 0;
    if (iv_size != NONCE || cid_size > LARGEST_CID || head_size > LARGEST_DATAGRAM || chunk < SAMPLE
        || chunk > LARGEST_DATAGRAM || data.len % chunk || count > MOST_SEALED || (width != 4 && width != 8)
        || number < 0 || number > LARGEST_INTEGER - MOST_SEALED || offset < 0 || offset > LARGEST_INTEGER - data.len) {
        PyErr_SetString(PyExc_ValueError, "an argument is out of range");
        goto done;
    }
    list = PyList_New(0);
    if (!list || !count)
        goto done;
    if (make_buffers(&buffers))
        goto failed;
    Py_ssize_t header_size = 1 + cid_size + NUMBER_SIZE, frame_size = head_size + width + chunk;
    header[0] = (unsigned char)first;
    memcpy(header + 1, cid, (size_t)cid_size);
    for (Py_ssize_t each = 0; each < count; each++) {
        unsigned char *nonce = sized(buffers.nonce, NONCE);
        unsigned char *associated = nonce ? sized(buffers.header, header_size) : NULL;
        unsigned char *frame = associated ? sized(buffers.from, frame_size) : NULL;
        if (!frame || !sized(buffers.to, frame_size + TAG))
            goto failed;
        header[header_size - 2] = (unsigned char)((number + each) >> 8);
        header[header_size - 1] = (unsigned char)(number + each);
        memcpy(associated, header, (size_t)header_size);
        memcpy(frame, head, (size_t)head_size);
        uint64_t where = (uint64_t)offset + (uint64_t)(each * chunk);
        for (int byte = 1; byte <= width; byte++, where >>= 8)
            frame[head_size + width - byte] = (unsigned char)where;
        frame[head_size] |= width == 4 ? 0x80 : 0xc0;
        memcpy(frame + head_size + width, (const char *)data.buf + each * chunk, (size_t)chunk);
        make_nonce(nonce, iv, number + each);
        const unsigned char *body = call_aead(encrypt, &buffers, frame_size + TAG);
        if (!body)
            goto failed;
        memcpy(samples + each * SAMPLE, body + SAMPLE_OFFSET - NUMBER_SIZE, SAMPLE);
        PyObject *packet = PyBytes_FromStringAndSize(NULL, header_size + frame_size + TAG);
        if (packet) {
            char *to = PyBytes_AsString(packet);
            memcpy(to, header, (size_t)header_size);
            memcpy(to + header_size, body, (size_t)(frame_size + TAG));
        }
        int missing = !packet || PyList_Append(list, packet);
        Py_XDECREF(packet);
        if (missing)
            goto failed;
    }
    masks = make_masks(update, samples, count);
    if (!masks)
        goto failed;
    for (Py_ssize_t each = 0; each < count; each++) {
        /* Nobody else has seen these objects yet. */
        unsigned char *packet = (unsigned char *)PyBytes_AsString(PyList_GetItem(list, each));
        const unsigned char *mask = (const unsigned char *)PyBytes_AsString(masks) + each * SAMPLE;
        packet[0] ^= mask[0] & PROTECTED_BITS;
        packet[header_size - 2] ^= mask[1];
        packet[header_size - 1] ^= mask[2];
    }
    goto done;
failed:
    Py_CLEAR(list);
done:
    drop_buffers(&buffers);
    Py_XDECREF(masks);
    PyBuffer_Release(&data);
    return list;
}

static PyMethodDef methods[] = {
    {"open_run", open_run, METH_VARARGS, open_run_doc},
    {"seal_run", seal_run, METH_VARARGS, seal_run_doc},
    {NULL, NULL, 0, NULL},
};

static int
fill(PyObject *module)
{
    return PyModule_AddIntConstant(module, "ABI", ABI);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, fill},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "allswell_native._runs",
    .m_doc = "The loops over the QUIC packets of a run.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__runs(void)
{
    return PyModuleDef_Init(&definition);
}
